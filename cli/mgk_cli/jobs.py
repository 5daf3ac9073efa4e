"""Job files that start a run in many processes: text for a cluster's own commands, which mgk never calls."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from attrs import frozen

PORT = 29500
GRACE = 600  # seconds between a stop and the end, for the step at hand and a checkpoint

_TASK = 'export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID; exec "$@"'


@frozen
class Job:
    """What to start. run: arguments of ``mgk run``. nproc: processes of a node, one per GPU. time: minutes.

    retries: how often a failed job is started again where the cluster does not know why it failed.
    """

    name: str
    run: tuple[str, ...]
    nodes: int = 1
    nproc: int = 1
    time: int = 240
    retries: int = 3
    image: str = ""
    claim: str = ""
    gpu: str = ""

    @property
    def minutes(self) -> int:
        """Minutes after which the run stops by itself: ten before the limit, of a short one a quarter."""
        return self.time - min(GRACE // 60, max(1, self.time // 4))


def slurm(job: Job) -> str:
    """Return a batch script. srun starts each process itself, so exit codes and signals are mgk's own."""
    run = _line("mgk", "run", *job.run, "--resume", "--minutes", str(job.minutes))
    return f"""#!/bin/bash
#SBATCH --job-name={job.name}
#SBATCH --nodes={job.nodes}
#SBATCH --ntasks-per-node={job.nproc}
#SBATCH --gpus-per-node={job.nproc}
#SBATCH --time={job.time}
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
# Add what your cluster needs: --partition, --account, --cpus-per-task.

export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))

srun bash -c '{_TASK}' rank \\
    {run}
code=$?

# 130: stopped with a checkpoint before the time limit. Other failures would only be repeated.
if [ "$code" -eq 130 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def k8s(job: Job) -> str:
    """Return a Job, and the Service by which its pods find the first one, as JSON for kubectl."""
    head = f"{job.name}-0.{job.name}"
    container = {
        "name": "mgk",
        "image": job.image,
        "command": ["bash", "-c", _node(job, "$JOB_COMPLETION_INDEX", head)],
        "resources": {"limits": {"nvidia.com/gpu": job.nproc}},
        "volumeMounts": [
            {"name": "runs", "mountPath": "/runs"},
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - NCCL's, inside the pod
        ],
    }
    rules: list[dict[str, Any]] = [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
    ]
    if job.nodes == 1:  # torchrun ends with 1, whatever the reason was
        codes = {"operator": "In", "values": [1, 2]}
        rules.append({"action": "FailJob", "onExitCodes": codes})
    pod = {
        "subdomain": job.name,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "containers": [container],
        "volumes": [
            {"name": "runs", "persistentVolumeClaim": {"claimName": job.claim}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
        ],
    }
    service = {
        "clusterIP": "None",
        "selector": {"job-name": job.name},
        "publishNotReadyAddresses": True,
    }
    batch = {
        "completions": job.nodes,
        "parallelism": job.nodes,
        "completionMode": "Indexed",
        "backoffLimit": job.retries * job.nodes,
        "podFailurePolicy": {"rules": rules},
        "template": {"spec": pod},
    }
    named = {"name": job.name}
    return _json(
        {
            "apiVersion": "v1",
            "kind": "List",
            "items": [
                {"apiVersion": "v1", "kind": "Service", "metadata": named}
                | {"spec": service},
                {"apiVersion": "batch/v1", "kind": "Job", "metadata": named}
                | {"spec": batch},
            ],
        }
    )


def skypilot(job: Job) -> str:
    """Return a task; JSON is YAML too. Managed jobs start it again on a new cluster after a preemption."""
    head = '$(echo "$SKYPILOT_NODE_IPS" | head -n 1)'
    return _json(
        {
            "name": job.name,
            "num_nodes": job.nodes,
            "resources": {
                "accelerators": f"{job.gpu}:{job.nproc}",
                "job_recovery": {"max_restarts_on_errors": job.retries},
            },
            "run": _node(job, "$SKYPILOT_NODE_RANK", head),
        }
    )


def ray(job: Job) -> str:
    """Return a script that submits one node's run; where a process was lost (exit code 3) it is continued."""
    attempts = " ".join(map(str, range(job.retries + 1)))
    loop = (
        f"for attempt in {attempts}; do {_alone(job)}; code=$?;"
        ' [ "$code" -eq 3 ] || break; done; exit "$code"'
    )
    return f"""#!/bin/bash
exec ray job submit --entrypoint-num-gpus={job.nproc} -- \\
    bash -c {shlex.quote(loop)}
"""


KINDS: Mapping[str, Callable[[Job], str]] = {
    "slurm": slurm,
    "skypilot": skypilot,
    "k8s": k8s,
    "ray": ray,
}


def _node(job: Job, number: str, head: str) -> str:
    """Return what one node runs. number, head: shell words for the node's number and the first one's address."""
    if job.nodes == 1:
        return f"exec {_alone(job)}"
    run = _line("mgk_cli", "run", *job.run, "--resume")
    return (
        f"exec python -m torch.distributed.run --nnodes {job.nodes} --nproc-per-node {job.nproc}"
        f" --node-rank {number} --master-addr {head} --master-port {PORT} -m {run}"
    )


def _alone(job: Job) -> str:
    return _line("mgk", "run", *job.run, "--resume", "--nproc", str(job.nproc))


def _line(*words: str) -> str:
    return shlex.join(words)


def _json(value: object) -> str:
    return json.dumps(value, indent=2) + "\n"


def misplaced(kind: str, given: Mapping[str, Any]) -> Sequence[str]:
    """Return the options that a kind of job does not use, of those that were given."""
    used = {
        "slurm": {"time", "nodes"},
        "k8s": {"image", "claim", "nodes", "retries"},
        "skypilot": {"gpu", "nodes", "retries"},
        "ray": {"retries"},
    }
    return sorted(k for k, v in given.items() if v is not None and k not in used[kind])

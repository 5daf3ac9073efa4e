"""Job files: each is run here as its cluster would, with stand-ins for the cluster's own commands."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

FEW = (
    *("--until", "plain_text"),
    *("--set", "run.threads=1", "--set", "run.save_model=false"),
    *("--set", "defaults.gate.min-gain=false", "--set", "defaults.train.steps=4"),
)


@pytest.fixture
def cluster(tmp_path):
    """Return ``start(command, name=text, ...)``: start a command beside stand-ins for programs, by name."""
    here = tmp_path / "bin"
    here.mkdir()

    def start(command, environment=None, **programs):
        programs.setdefault(
            "mgk", f'#!/bin/bash\nexec {sys.executable} -m mgk_cli "$@"\n'
        )
        programs.setdefault("python", f'#!/bin/bash\nexec {sys.executable} "$@"\n')
        for name, text in programs.items():
            (here / name).write_text(text)
            (here / name).chmod(0o755)
        return subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ
            | {"PATH": f"{here}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
            | {"MGK_CACHE": str(tmp_path / "cache")}
            | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


SRUN = """#!/bin/bash
for rank in 0 1; do SLURM_PROCID=$rank SLURM_LOCALID=$rank SLURM_NTASKS=2 "$@" & done
worst=0
for job in $(jobs -p); do wait $job; code=$?; [ $code -gt $worst ] && worst=$code; done
exit $worst
"""
SCONTROL = """#!/bin/bash
if [ "$1" = show ]; then echo localhost; else echo "$@" > requeued; fi
"""


def finished(run):
    """Return whether a run has come to the end of its first phase."""
    return '"phase_exit"' in (run / "journal.jsonl").read_text()


@pytest.mark.distributed
def test_a_slurm_job_stops_before_its_limit_is_queued_again_and_finishes(
    mgk, cluster, tmp_path
):
    """Two tasks as srun starts them: 130 and requeued, then 0; another failure is not queued again."""
    written = mgk(
        *("launch", "slurm", "--nproc", 2, "--time", 60, "--", "textmodel"),
        *("--out", "with space", *FEW[:-1], "defaults.train.steps=6"),
    )
    assert written.code == 0
    assert "#SBATCH --ntasks-per-node=2\n#SBATCH --gpus-per-node=2\n" in written.out
    assert "#SBATCH --signal=TERM@120\n#SBATCH --requeue\n" in written.out
    environment = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1"}

    def submit(text):
        (tmp_path / "job.sh").write_text(text)
        job = cluster(["bash", "job.sh"], environment, srun=SRUN, scontrol=SCONTROL)
        printed, _ = job.communicate(timeout=600)
        return job.returncode, printed

    assert "--minutes 50\n" in written.out
    code, printed = submit(written.out.replace("--minutes 50\n", "--minutes 0.01\n"))
    assert code == 130, printed
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"
    (tmp_path / "requeued").unlink()
    code, printed = submit(written.out)
    assert code == 0, printed
    assert finished(tmp_path / "with space")
    code, printed = submit(written.out.replace("steps=6", "steps=7"))
    assert code == 2, printed
    assert not (tmp_path / "requeued").exists()


@pytest.mark.distributed
@pytest.mark.parametrize("kind", ["k8s", "skypilot"])
def test_a_job_of_two_nodes_is_one_run(mgk, cluster, tmp_path, kind):
    """Two launchers of one process each find each other, and write one run."""
    options = {
        "k8s": ("--image", "mgk", "--claim", "disk"),
        "skypilot": ("--gpu", "L4"),
    }
    written = mgk(
        *("launch", kind, "--nodes", 2, *options[kind], "--", "textmodel"),
        *("--out", "shared", *FEW),
    )
    table = json.loads(written.out)
    if kind == "k8s":
        service, job = table["items"]
        pod = job["spec"]["template"]["spec"]
        assert (
            service["metadata"]["name"] == pod["subdomain"] == job["metadata"]["name"]
        )
        assert job["spec"]["completions"] == job["spec"]["parallelism"] == 2
        command = pod["containers"][0]["command"][-1].replace("mgk-0.mgk", "localhost")
    else:
        assert table["num_nodes"] == 2
        assert table["resources"]["accelerators"] == "L4:1"
        command = table["run"]
    nodes = [
        cluster(
            ["bash", "-c", command],
            {
                "JOB_COMPLETION_INDEX": str(number),
                "SKYPILOT_NODE_RANK": str(number),
                "SKYPILOT_NODE_IPS": "localhost\nother",
            },
        )
        for number in (0, 1)
    ]
    ends = [(node.communicate(timeout=600)[0], node.returncode) for node in nodes]
    assert [code for _, code in ends] == [0, 0], ends
    assert finished(tmp_path / "shared")


def test_a_ray_job_continues_where_a_process_was_lost(mgk, cluster, tmp_path):
    """Exit code 3 is tried again, any other one ends the job."""
    script = mgk("launch", "ray", "--nproc", 4, "--", "textmodel", "--out", "x").out
    lost = '#!/bin/bash\necho "$@" >> calls\n[ $(wc -l < calls) -ge 3 ] && exit 2\nexit 3\n'
    ray = '#!/bin/bash\necho "$1 $2 $3" > submitted\nwhile [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n'
    job = cluster(["bash", "-c", script], mgk=lost, ray=ray)
    printed, _ = job.communicate(timeout=30)
    assert job.returncode == 2, printed
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == ["run textmodel --out x --resume --nproc 4"] * 3
    submitted = (tmp_path / "submitted").read_text()
    assert submitted == "job submit --entrypoint-num-gpus=4\n"


def test_one_node_of_kubernetes_does_not_repeat_what_cannot_succeed(mgk):
    """Bad input and a refused gate end the job; a lost process does not."""
    written = mgk(
        "launch", "k8s", "--image=i", "--claim=c", "--", "textmodel", "--out=x"
    )
    job = json.loads(written.out)["items"][1]["spec"]
    assert job["podFailurePolicy"]["rules"][1]["onExitCodes"]["values"] == [1, 2]
    container = job["template"]["spec"]["containers"][0]
    assert container["command"][-1] == (
        "exec mgk run textmodel --out=x --resume --nproc 1"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("slurm", "--", "textmodel"), "--out is missing after --"),
        (("slurm", "--", "textmodel", "--otu", "x"), "no such option '--otu'"),
        (("slurm", "--", "textmodel", "--out=x", "--nproc=2"), "the job file sets it"),
        (
            ("slurm", "--image", "i", "--", "t", "--out=x"),
            "not an option of slurm jobs",
        ),
        (("ray", "--nodes", 2, "--", "t", "--out=x"), "not an option of ray jobs"),
        (("k8s", "--image", "i", "--", "t", "--out=x"), "--claim is missing"),
        (("lsf", "--", "t", "--out=x"), "'slurm', 'skypilot', 'k8s', 'ray'"),
    ],
)
def test_what_no_job_could_run_is_refused(mgk, arguments, words):
    """The arguments of the run are checked when the file is written, not when the job has waited in a queue."""
    ran = mgk("launch", *arguments)
    assert ran.code == 2
    assert words in ran.err
    assert ran.out == ""


def test_a_job_file_is_not_overwritten(mgk, tmp_path):
    """The file holds what would be printed; a second one does not replace it."""
    file = tmp_path / "job.sh"
    command = ("launch", "ray", "--write", file, "--", "textmodel", "--out", "x")
    assert mgk(*command).out == f"{file}\n"
    assert (
        Path(file).read_text()
        == mgk("launch", "ray", "--", "textmodel", "--out", "x").out
    )
    again = mgk(*command)
    assert again.code == 2
    assert "exists" in again.err

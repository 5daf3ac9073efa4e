"""Runs pipelines in processes that may be killed: a warm parent forks a child for each request.

Importing torch takes longer than a small run. Requests and answers are JSON, one a line.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import resource
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import disks
import torch

from mgk_core.config.resolve import structure_spec
from mgk_core.contract.errors import MgkError
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_core.record.disk import Disk
from mgk_core.run import identity
from mgk_core.run.runner import resume_run, run_phase, run_pipeline
from mgk_core.tools.export import export_adapter

ANSWER = "answer.json"


def serve() -> None:
    """Answer until standard input ends."""
    torch.set_num_threads(1)  # no pool of threads that a fork would lose
    for line in sys.stdin:
        request = json.loads(line)
        answer = warm(request) if request["do"] == "warm" else handle(request)
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def warm(request: dict[str, Any]) -> dict[str, Any]:
    """Run once in this process, so that no child has to import anything, nor look through what it has imported
    whenever it collects garbage.

    Children keep the digests of the source files as they were imported, whoever edits them meanwhile.
    """
    if not hasattr(identity.code_digest, "cache_clear"):
        identity.code_digest = functools.cache(identity.code_digest)
    config = request.get("config")
    run_pipeline(
        None if config else "textmodel",
        out=Path(request["out"]),
        config=config,
        overrides=request.get("set", []),
    )
    gc.collect()
    gc.freeze()
    return {}


def handle(request: dict[str, Any]) -> dict[str, Any]:
    """Fork, let the child do what is asked, kill it in time if that is asked; say how it ended."""
    scratch = Path(request["scratch"])
    answer = scratch / ANSWER
    answer.unlink(missing_ok=True)
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_child(request, scratch)
    deadline = began + request.get("kill_after", 1e9)
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        if time.monotonic() >= deadline:
            os.kill(child, 9)
            deadline = began + 1e9
        time.sleep(0.001)
    said = json.loads(answer.read_text()) if answer.exists() else {}
    killed = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    return {"signal": killed, "seconds": time.monotonic() - began, **said}


def _be_child(request: dict[str, Any], scratch: Path) -> None:
    """Do the work, write the answer, and end without the parent's exit handlers."""
    log = os.open(scratch / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.setpgid(0, 0)
    # Under nohup a hang-up is ignored from the start: each request says itself what it relies on.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    for number in request.get("ignore", ()):
        signal.signal(number, signal.SIG_IGN)
    told: list[dict[str, Any]] = []
    disk = _disk(request.get("disk"))
    said: dict[str, Any] = {"error": None, "code": 0}
    try:
        for name, value in request.get("limits", {}).items():
            _limit(name, value)
        if room := request.get("cuda_room"):
            whole = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(room / whole)
        said["ledger"] = _work(request, disk, told)
    except MgkError as error:
        said |= {
            "error": type(error).__name__,
            "code": error.exit_code,
            "message": str(error),
        }
    except BaseException as error:  # noqa: BLE001 - a fault: the test must see it
        traceback.print_exc()
        said |= {"error": type(error).__name__, "code": 99, "message": str(error)}
    for name in request.get("limits", {}):
        resource.setrlimit(
            getattr(resource, name),
            (resource.getrlimit(getattr(resource, name))[1],) * 2,
        )
    if isinstance(disk, disks.Counting):
        said |= {"count": disk.count, "names": disk.names}
    said["told"] = [e for e in told if e["event"] in request.get("tell", ("note",))]
    temporary = scratch / (ANSWER + ".new")
    temporary.write_text(json.dumps(said, default=str))
    temporary.replace(scratch / ANSWER)
    os._exit(0)


def _limit(name: str, value: int) -> None:
    """Set a soft limit; of memory, above what the process has already."""
    kind = getattr(resource, name)
    if name == "RLIMIT_AS":
        value += (
            int(Path("/proc/self/statm").read_text().split()[0])
            * resource.getpagesize()
        )
    resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _work(request: dict[str, Any], disk: Disk, told: list[dict[str, Any]]) -> str:
    out = Path(request["out"])
    if request["do"] == "base":
        return save_base(out)
    if request["do"] == "export":
        return ",".join(export_adapter(out, Path(request["to"])).phases)
    for folder in request.get("path", ()):
        sys.path.insert(0, folder)

    def sink(event: Any) -> None:
        told.append(dict(event))
        number = request.get("signal_at", {}).get(event["event"])
        named = request.get("signal_part") in {None, event.get("part")}
        if (
            number is not None
            and named
            and event.get("step", 0) >= request.get("signal_step", 0)
        ):
            os.kill(os.getpid(), number)

    options: dict[str, Any] = {
        "sink": sink,
        "disk": disk,
        "until": request.get("until"),
    }
    options |= {k: request[k] for k in ("minutes", "auto_batch") if k in request}
    if request["do"] == "run":
        config = request.get("config")
        pipeline = None if config else "textmodel"
        result = run_pipeline(
            pipeline,
            out=out,
            config=config,
            overrides=request.get("set", []),
            **options,
        )
    elif request["do"] == "resume":
        result = resume_run(out, accept=request.get("accept", ()), **options)
    else:
        options.pop("until")
        result = run_phase(
            Path(request["of"]),
            request["phase"],
            out=out,
            overrides=request.get("set", []),
            **options,
        )
    return result.ledger.head


def save_base(out: Path) -> str:
    """Write a small language model as a user's own directory."""
    hooks = Hooks(load_plugins())
    spec = structure_spec(
        hooks.plugins.registry, "base", {"type": "hf", "id": "tiny-gemma"}
    )
    hooks.build_model(spec, torch.device("cpu")).save(out)
    return str(out)


def _disk(spec: dict[str, Any] | None) -> Disk:
    if spec is None:
        return Disk()
    options = dict(spec)
    kind = options.pop("kind")
    for key in ("root", "out"):
        if key in options:
            options[key] = Path(options[key])
    for key in ("at",) if kind in {"Forgetting", "Negligent"} else ():
        options[key] = set(options[key])
    for key in ("names",) if kind == "Forbidding" else ():
        options[key] = tuple(options[key])
    return getattr(disks, kind)(**options)


if __name__ == "__main__":
    serve()

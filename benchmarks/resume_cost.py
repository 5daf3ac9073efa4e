"""What checkpoints and the journal cost a run, and how soon a resumed run takes its first step.

    python benchmarks/resume_cost.py [PIPELINE] [--set KEY=VALUE ...]

PIPELINE: ``korean-medical`` (default) or any other. Prints one JSON object. The share is of the run's wall time and
counts everything that writes through the store: checkpoints, journal, ledger, metrics' syncs, score and adapter files.
The delay is between the start of the process and the first training step, of a fresh run and of one that a signal
stopped in its last phase, each in a process of its own with warm file caches.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

WORKER = "--worker"


def timed_disk() -> Any:
    """Return a disk that adds up the time spent in it."""
    from mgk_core.disk import Disk

    class Timed(Disk):
        """Counts seconds and operations; nested calls count once."""

        def __init__(self) -> None:
            self.seconds, self.operations, self._depth = 0.0, 0, 0

        def _time(self, operation: Callable[..., None], *args: Any) -> None:
            began = time.perf_counter()
            self._depth += 1
            try:
                operation(*args)
            finally:
                self._depth -= 1
                self.operations += 1
                if self._depth == 0:
                    self.seconds += time.perf_counter() - began

    for name in ("produce", "append", "sync", "rename", "remove", "make_folder", "truncate"):
        plain = getattr(Disk, name)
        setattr(Timed, name, lambda self, *a, plain=plain: self._time(plain.__get__(self), *a))
    return Timed()


def worker(options: dict[str, Any]) -> None:
    """Run or resume in this process; tell when the first step was taken and what the disk cost."""
    from mgk_core.errors import Interrupted
    from mgk_core.runner import resume_run, run_pipeline

    disk, told = timed_disk(), {"first_step": None, "checkpoint": 0.0}
    began = time.perf_counter()

    def sink(event: Any) -> None:
        if event["event"] == "step" and told["first_step"] is None:
            told["first_step"] = time.time() - options["started"] - event["seconds"]
        if event["event"] == "step" and event["phase"] == options.get("stop_in") and event["step"] >= 2:
            os.kill(os.getpid(), signal.SIGTERM)

    out = Path(options["out"])
    settings = ["defaults.train.log_every=1", *options["set"]]
    try:
        if options["do"] == "run":
            result = run_pipeline(options["pipeline"], out=out, overrides=settings, sink=sink, disk=disk)
        else:
            result = resume_run(out, sink=sink, disk=disk)
        told["checkpoint"] = result.times.get("checkpoint", 0.0)
    except Interrupted:
        pass
    wall = time.perf_counter() - began
    print(json.dumps(told | {"wall": wall, "disk": disk.seconds, "operations": disk.operations}))


def ask(**options: Any) -> dict[str, Any]:
    """Let a fresh process do something."""
    options["started"] = time.time()
    command = [sys.executable, __file__, WORKER, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pipeline", nargs="?", default="korean-medical")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    from mgk_core.config import load_tree

    phases = list(load_tree(given.pipeline).values["phases"])
    common = {"pipeline": given.pipeline, "set": given.set}
    with tempfile.TemporaryDirectory() as folder:
        whole = ask(do="run", out=f"{folder}/whole", **common)
        cut = ask(do="run", out=f"{folder}/cut", stop_in=phases[-1], **common)
        resumed = ask(do="resume", out=f"{folder}/cut", **common)
    writing = max(whole["disk"], whole["checkpoint"])
    found = {
        "pipeline": given.pipeline,
        "run_seconds": round(whole["wall"], 2),
        "writing_seconds": round(writing, 3),
        "writing_share": round(writing / whole["wall"], 4),
        "operations": whole["operations"],
        "first_step_fresh_seconds": round(cut["first_step"], 2),
        "first_step_resumed_seconds": round(resumed["first_step"], 2),
        "resume_delay_seconds": round(resumed["first_step"] - cut["first_step"], 2),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    if WORKER in sys.argv:
        worker(json.loads(sys.argv[sys.argv.index(WORKER) + 1]))
    else:
        main()

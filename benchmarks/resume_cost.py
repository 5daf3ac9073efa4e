"""What checkpoints and the journal cost a run, and how soon a resumed run takes its first step.

    python benchmarks/resume_cost.py [PIPELINE] [--set KEY=VALUE ...]

PIPELINE: ``korean-medical`` (default) or any other. One run is stopped by a signal in its last phase and resumed to its
end, each in a process of its own. Prints one JSON object. The share is of the wall time of both processes together and
counts everything that writes through the store: checkpoints, journal, ledger, metrics' syncs, score, statistics, adapter
and model files. The delay is between the start of a process and its first training step; a fresh run scores the base and
collects its statistics before that, which a resumed one reads from its files, so that this time is taken off.
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
SCORING = ("evaluation", "statistics")
"""Parts before the first step that a resumed run has on file."""


def timed_disk() -> Any:
    """Return a disk that adds up the time spent in it."""
    from mgk_core.record.disk import Disk

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

    for name in (
        "produce",
        "append",
        "sync",
        "rename",
        "remove",
        "make_folder",
        "truncate",
    ):
        plain = getattr(Disk, name)
        setattr(
            Timed,
            name,
            lambda self, *a, plain=plain: self._time(plain.__get__(self), *a),
        )
    return Timed()


class Watch:
    """Records when the first step began, and what the time before it was spent on."""

    def __init__(self, started: float, stop_in: str | None) -> None:
        self.started, self.stop_in = started, stop_in
        self.first_step: float | None = None
        self.parts: dict[str, float] = {}
        self._part, self._since = "start", started

    def __call__(self, event: Any) -> None:
        """Take one event; send this process the signal at the step where it has to stop."""
        if event["event"] == "part" and self.first_step is None:
            self._close(time.time())
            self._part = event["part"]
        if event["event"] == "step" and self.first_step is None:
            began = time.time() - event["seconds"]
            self._close(began)
            self.first_step = began - self.started
        if (
            event["event"] == "step"
            and event["phase"] == self.stop_in
            and event["step"] >= 2
        ):
            os.kill(os.getpid(), signal.SIGTERM)

    def _close(self, now: float) -> None:
        self.parts[self._part] = self.parts.get(self._part, 0.0) + now - self._since
        self._since = now


def worker(options: dict[str, Any]) -> None:
    """Run or resume in this process; return when the first step was taken and what the disk cost."""
    from mgk_core.contract.errors import GateRefused, Interrupted
    from mgk_core.run.runner import resume_run, run_pipeline

    disk, watch, finished = (
        timed_disk(),
        Watch(options["started"], options.get("stop_in")),
        True,
    )
    out = Path(options["out"])
    try:
        if options["do"] == "run":
            settings = ["defaults.train.log_every=1", *options["set"]]
            run_pipeline(
                options["pipeline"], out=out, overrides=settings, sink=watch, disk=disk
            )
        else:
            resume_run(out, sink=watch, disk=disk)
    except Interrupted:
        finished = False
    except GateRefused as refusal:  # rolled back, as may be with few steps: it has ended, and written, all the same
        print(refusal, file=sys.stderr)
    told = {"first_step": watch.first_step, "parts": watch.parts, "finished": finished}
    wall = time.time() - options["started"]
    print(
        json.dumps(
            told | {"wall": wall, "disk": disk.seconds, "operations": disk.operations}
        )
    )


def ask(**options: Any) -> dict[str, Any]:
    """Let a fresh process do something."""
    options["started"] = time.time()
    command = [sys.executable, __file__, WORKER, json.dumps(options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def rounded(parts: dict[str, float]) -> dict[str, float]:
    """Return seconds with two digits."""
    return {k: round(v, 2) for k, v in parts.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("pipeline", nargs="?", default="korean-medical")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    given = parser.parse_args()
    from mgk_core.config.resolve import load_tree

    phases = list(load_tree(given.pipeline).values["phases"])
    with tempfile.TemporaryDirectory() as folder:
        cut = ask(
            do="run",
            out=f"{folder}/run",
            stop_in=phases[-1],
            pipeline=given.pipeline,
            set=given.set,
        )
        resumed = ask(do="resume", out=f"{folder}/run")
    if cut["finished"] or not resumed["finished"]:
        raise SystemExit(
            "expected a run that was stopped in its last phase and one that finished"
        )
    wall, writing = cut["wall"] + resumed["wall"], cut["disk"] + resumed["disk"]
    scoring = sum(cut["parts"].get(p, 0.0) for p in SCORING)
    fresh = cut["first_step"] - scoring
    found = {
        "pipeline": given.pipeline,
        "run_seconds": round(wall, 2),
        "writing_seconds": round(writing, 3),
        "writing_share": round(writing / wall, 4),
        "operations": cut["operations"] + resumed["operations"],
        "fresh": {
            "first_step_seconds": round(cut["first_step"], 2),
            "parts": rounded(cut["parts"]),
        },
        "resumed": {
            "first_step_seconds": round(resumed["first_step"], 2),
            "parts": rounded(resumed["parts"]),
        },
        "fresh_without_scoring_seconds": round(fresh, 2),
        "resume_delay_seconds": round(resumed["first_step"] - fresh, 2),
    }
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    if WORKER in sys.argv:
        worker(json.loads(sys.argv[sys.argv.index(WORKER) + 1]))
    else:
        main()

"""A server of runs that may be killed, a run that was not, and what must be equal at the end."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mgk_core.record.journal import open_journal
from mgk_core.record.store import TEMPORARY, Store

VOLATILE = {
    "seconds",
    "per_second",
    "rss",
    "rss_peak",
    "cuda_allocated",
    "cuda_reserved",
    "cuda_peak",
}
"""What of metrics.jsonl may differ between two runs: times, throughput, memory."""

PHASES = ("plain_text", "medical_dictionary", "mcq")
SMALL = {
    "base.widths": "[12, 24, 24, 6]",
    "run.threads": "1",
    "run.device": "cpu",
    "defaults.data.items": "6",
    "defaults.adapter.rank": "3",
    "PHASE.data.size": "24",
    "PHASE.train.batch_size": "4",
    "PHASE.train.micro_batch": "2",
    "defaults.train.log_every": "3",
    "defaults.train.checkpoint_steps": "2",
    "defaults.gate.min-gain": "false",
    "phases.plain_text.train.steps": "7",
    "phases.medical_dictionary.train.steps": "6",
    "phases.mcq.train.steps": "5",
    # What a resume could get wrong: dropout's random numbers, momentum, the best step, a schedule.
    "phases.plain_text.adapter.dropout": "0.2",
    "phases.medical_dictionary.optimizer": '{type = "adamw", lr = 0.01, schedule = "cosine", warmup_steps = 2}',
    "phases.medical_dictionary.train.eval_every": "2",
    "phases.medical_dictionary.train.keep": '"best"',
    "phases.mcq.optimizer.momentum": "0.9",
}


def settings(**more):
    """Return the small run's ``--set`` strings, with more of them.

    Dots as double underscores; ``PHASE`` stands for each phase.
    """
    table = SMALL | {k.replace("__", "."): str(v) for k, v in more.items()}
    each = [
        (k.replace("PHASE", f"phases.{p}"), v)
        for k, v in table.items()
        for p in PHASES
        if "PHASE" in k
    ]
    return [
        f"{k}={v}"
        for k, v in [*each, *((k, v) for k, v in table.items() if "PHASE" not in k)]
    ]


class Server:
    """The other end of `server.py`."""

    def __init__(self, scratch: Path) -> None:
        self.scratch = scratch
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONWARNINGS": "ignore",
            "MGK_CACHE": str(scratch / "cache"),
        }
        environment |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        script = Path(__file__).with_name("server.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        self("warm", scratch / "warm", set=settings())

    def __call__(self, do, out, **request):
        """Let a child do something; return how it ended."""
        request |= {"do": do, "out": str(out), "scratch": str(self.scratch)}
        request["path"] = [str(p) for p in request.get("path", ())]
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline())
        assert answer.get("code") != 99, (self.scratch / "log").read_text()
        return answer

    def run(self, out, **request):
        """Begin the small run in ``out``."""
        return self("run", out, set=settings(**request.pop("settings", {})), **request)

    def resume(self, out, **request):
        """Go on with a run."""
        return self("resume", out, **request)

    def close(self):
        """End the server; it has nothing to tidy up."""
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()


@pytest.fixture(scope="session")
def server(shelf):
    """A warm process that forks children."""
    scratch = shelf / "server"
    scratch.mkdir()
    server = Server(scratch)
    yield server
    server.close()


@pytest.fixture(scope="session")
def whole(server, shelf):
    """A run that nothing stopped, and how many operations on the disk it took."""
    out = shelf / "whole"
    answer = server.run(out, disk={"kind": "Counting"})
    assert answer["code"] == 0, answer
    return out, answer


def metrics(run):
    """Return the metrics of a run without what may differ."""
    lines = (run / "metrics.jsonl").read_text().splitlines()
    events = (json.loads(line) for line in lines)
    return [
        {k: v for k, v in e.items() if k not in VOLATILE}
        for e in events
        if e["event"] != "time"
    ]


def ended_alike(run, reference):
    """Assert that a run ended as the reference did: ledger byte for byte, metrics, no leftovers, whole journal."""
    assert (run / "ledger.json").read_bytes() == (
        reference / "ledger.json"
    ).read_bytes()
    assert (run / "retention.json").read_bytes() == (
        reference / "retention.json"
    ).read_bytes()
    assert metrics(run) == metrics(reference)
    left = [
        str(p)
        for p in run.rglob("*")
        if p.name.startswith(TEMPORARY) or p.name in {".lock", "checkpoint"}
    ]
    assert left == []
    assert files_of(run) == files_of(reference)
    journal = open_journal(Store(run), repair=False)
    assert journal.torn == 0
    assert journal.last("finished") is not None


def files_of(run):
    """Return the names of all files of a run."""
    return sorted(str(p.relative_to(run)) for p in run.rglob("*") if p.is_file())


@pytest.fixture(scope="session")
def same_end():
    """Assert that a run ended as a reference did."""
    return ended_alike


@pytest.fixture(scope="session")
def go_on(server):
    """Resume a killed run, or start it again where nothing of it had come to be."""

    def again(run, **request):
        begun = (run / "run.toml").exists()
        answer = server.resume(run, **request) if begun else server.run(run, **request)
        assert answer["code"] == 0, answer["message"]
        return answer

    return again


@pytest.fixture(scope="session")
def kills():
    """How many kills to survive: 20, or as many as MGK_KILLS says."""
    return int(os.environ.get("MGK_KILLS", "20"))


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """A place for runs: in memory where there is one, since a kill does not need a device to be slow."""
    if not Path("/dev/shm").is_dir():
        yield tmp_path_factory.mktemp("runs")
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="mgk-") as folder:
        yield Path(folder)


@pytest.fixture
def places(shelf):
    """Fresh directories, one after the other, gone after the test."""
    with tempfile.TemporaryDirectory(dir=shelf) as folder:
        yield (Path(folder) / f"run-{i}" for i in itertools.count())


@pytest.fixture
def plugin(tmp_path):
    """Install a plugin named zz-faulty, as a distribution of its own, below a folder for ``sys.path``."""
    count = itertools.count()

    def install(source, folder=None):
        folder = folder or tmp_path / f"site-{next(count)}"
        info = folder / "zz_faulty-1.2.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: zz-faulty\nVersion: 1.2\n"
        )
        points = "[mgk.plugins]\nzz-faulty = zz_faulty\n[mgk.always]\nzz-faulty = zz_faulty\n"
        (info / "entry_points.txt").write_text(points)
        (folder / "zz_faulty.py").write_text(source)
        return folder

    return install

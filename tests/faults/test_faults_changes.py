"""Resume refuses what has changed since the run began, with both values, and goes on where that is accepted."""

from __future__ import annotations

import signal

import pytest

from mgk_core.record.journal import open_journal
from mgk_core.record.store import Store

ROWS = """
import pathlib

from attrs import evolve, frozen

from mgk_core.contract.hookspecs import hookimpl

SCALE = pathlib.Path(__file__).with_name("scale")


@frozen
class Scaled:
    rows: object
    scale: str

    @property
    def digest(self):
        return self.rows.digest + (self.scale if TELL else "")

    def __len__(self):
        return len(self.rows)

    def batch(self, rows):
        batch = self.rows.batch(rows)
        return evolve(batch, targets=batch.targets * float(self.scale))


@hookimpl(wrapper=True)
def mgk_load_data(spec, bundle):
    data = yield
    return evolve(data, train=Scaled(data.train, SCALE.read_text()))


@hookimpl
def mgk_loss_terms(ctx):  # acts unasked, so its code counts
    return None
"""


@pytest.fixture
def stopped(server, places):
    """A run that a signal stopped in its second phase."""
    run = next(places)
    answer = server.run(run, signal_at={"dev": int(signal.SIGTERM)})
    assert answer["code"] == 130
    return run


def edit(run, old, new):
    """Change run.toml, as a user would."""
    path = run / "run.toml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


CHANGES = [
    (
        "lr = 0.0003",
        "lr = 0.0004",
        "config.phases.mcq.optimizer.lr",
        "was 0.0003, is 0.0004",
    ),
    ("\nsteps = 5", "\nsteps = 4", "config.phases.mcq.train.steps", "was 5, is 4"),
    ("seed = 13", "seed = 14", "data.mcq", "was "),
    ("threads = 1", "threads = 2", "environment.threads", "was 1, is 2"),
    ("init_std = 0.1", "init_std = 0.2", "base", "was "),
    ("without = []", 'without = ["retention"]', "plugin.retention", ", is absent"),
]


@pytest.mark.parametrize(
    ("old", "new", "key", "values"), CHANGES, ids=[c[2] for c in CHANGES]
)
def test_a_change_is_refused_with_both_values(server, stopped, old, new, key, values):
    """Configuration, data, threads, base, plugins: each is named, with what it was and what it is."""
    before = (stopped / "journal.jsonl").read_bytes()
    edit(stopped, old, new)
    answer = server.resume(stopped)
    assert answer["code"] == 2, answer
    line = next(
        x for x in answer["message"].splitlines() if x.strip().startswith(f"{key}: was")
    )
    assert values in line
    assert "--accept-change" in answer["message"]
    assert (stopped / "journal.jsonl").read_bytes() == before


def test_an_accepted_change_goes_on_and_is_recorded(server, stopped):
    """--accept-change KEY takes that change only; it stands in the journal, and is not asked for again."""
    edit(stopped, "lr = 0.0003", "lr = 0.0004")
    edit(stopped, "\nsteps = 5", "\nsteps = 4")
    key = "config.phases.mcq.optimizer.lr"
    answer = server.resume(stopped, accept=[key])
    assert "config.phases.mcq.train.steps: was 5, is 4" in answer["message"]
    assert key not in answer["message"]
    answer = server.resume(
        stopped, accept=["config.phases.mcq"], until="medical_dictionary"
    )
    assert answer["code"] == 0, answer["message"]
    assert any(
        f"accepted change: {key}: was 0.0003, is 0.0004" in e["text"]
        for e in answer["told"]
    )
    event = open_journal(Store(stopped)).last("accepted")
    assert [c.split(":")[0] for c in event["changes"]] == [
        key,
        "config.phases.mcq.train.steps",
    ]
    assert server.resume(stopped)["code"] == 0


def test_changed_code_of_a_plugin_is_refused(server, places, plugin):
    """Code that may change what a run computes is part of the run; other plugins' code is not."""
    acting = "from mgk_core.contract.hookspecs import hookimpl\n\n@hookimpl\ndef mgk_loss_terms(ctx):\n    return None\n"
    looking = acting.replace("mgk_loss_terms", "mgk_observers")
    for source, matters in ((acting, True), (looking, False)):
        run, path = next(places), plugin(source)
        assert server.run(run, path=[path], until="plain_text")["code"] == 0
        plugin(source + "# changed\n", path)
        answer = server.resume(run, path=[path], until="medical_dictionary")
        assert answer["code"] == (2 if matters else 0)
        assert not matters or "plugin.zz-faulty: was " in answer["message"]


@pytest.mark.parametrize("tell", [True, False])
def test_changed_data_is_found_by_digest_or_by_loss(server, places, plugin, tell):
    """Changed rows change the digest; where a plugin's digest misses them, the loss does not go on."""
    run, path = next(places), plugin(f"TELL = {tell}\n" + ROWS)
    scale = path / "scale"
    scale.write_text("1.0")
    assert (
        server.run(run, path=[str(path)], signal_at={"dev": int(signal.SIGTERM)})[
            "code"
        ]
        == 130
    )
    scale.write_text("3.0")
    answer = server.resume(run, path=[str(path)])
    assert answer["code"] == 2
    if tell:
        assert "data.medical_dictionary: was " in answer["message"]
        answer = server.resume(run, path=[str(path)], accept=["data"])
        assert answer["code"] == 0, answer["message"]
        assert any(
            "after the change that was accepted" in e["text"] for e in answer["told"]
        )
    else:
        assert (
            "cannot continue reproducibly: the next batch's loss was"
            in answer["message"]
        )
        scale.write_text("1.0")
        assert server.resume(run, path=[str(path)])["code"] == 0


def test_a_run_is_not_started_over(server, stopped):
    """`mgk run` into an unfinished run refuses, and says how to go on."""
    answer = server.run(stopped)
    assert answer["code"] == 2
    assert f"resume it with 'mgk resume {stopped}'" in answer["message"]


def test_two_processes_on_one_run(server, stopped):
    """The second refuses and says who is there; afterwards the first's lock is gone."""
    import os

    from mgk_core.record.run_directory import Lock

    lock = Lock(stopped)
    answer = server.resume(stopped)
    assert answer["code"] == 2
    assert f"in use by process {os.getpid()} on" in answer["message"]
    lock.release()
    assert server.resume(stopped)["code"] == 0

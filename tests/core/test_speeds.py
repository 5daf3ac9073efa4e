"""What a machine computes fastest: measured once, kept, and robust against damaged files and a busy machine."""

import json
import os

import pytest
import torch
from torch import nn

import mgk
from mgk_core.model import device, speeds
from mgk_core.model.speeds import ASSUMED, fastest, has, measured, threads_for, using
from mgk_core.record.journal import open_journal
from mgk_core.record.store import Store
from mgk_core.run import setup
from mgk_core.run.reopen import reopen
from mgk_core.run.runner import resume_run
from mgk_core.tools import doctor


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, and a machine that is not busy."""
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0))
    return tmp_path / "cache"


def test_figures_are_measured_once_and_kept_by_machine(cache, monkeypatch):
    """The second time the file answers; another CPU or another torch measures for itself."""
    calls = []

    def measure():
        calls.append(1)
        return {"rate": float(len(calls))}

    assert [measured("a", measure)["rate"] for _ in range(3)] == [1.0, 1.0, 1.0]
    assert has("a")
    monkeypatch.setattr(speeds, "_cpu_model", lambda: "another")
    assert not has("a")
    assert measured("a", measure) == {"rate": 2.0}


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"format": 99}', '{"format": 1, "figures": {"x": []}}'])  # fmt: skip
def test_a_damaged_file_is_measured_again(cache, text):
    """Whatever is in it."""
    measured("a", lambda: {"x": 1.0})
    (path,) = cache.rglob("a.json")
    path.write_text(text)
    assert measured("a", lambda: {"x": 2.0}) == {"x": 2.0}
    assert json.loads(path.read_text())["figures"] == {"x": 2.0}


def test_a_cache_that_cannot_be_written_costs_the_time_alone(tmp_path, monkeypatch):
    """The figures are used all the same."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "file"))
    assert measured("a", lambda: {"x": 2.0}) == {"x": 2.0}


def test_a_busy_machine_assumes_and_keeps_nothing(monkeypatch):
    """Threads cannot be compared while others take the CPUs."""
    monkeypatch.setattr(os, "getloadavg", lambda: (9.0, 9.0, 9.0))
    assert speeds.threads_from(2) == ASSUMED
    assert not has("threads-2")


@pytest.mark.parametrize(("gain", "entries"), [(1.0, 2048**2), (0.5, 512**2)])
def test_threads_pay_from_the_first_width_at_which_they_are_faster(
    monkeypatch, gain, entries
):
    """Nowhere below the largest width if they never are."""
    monkeypatch.setattr(
        speeds, "_fastest", lambda *_: gain if torch.get_num_threads() > 1 else 1.0
    )
    with using(1):
        assert speeds.threads_from(2) == entries
        assert torch.get_num_threads() == 1


def test_a_small_base_takes_one_thread_and_a_large_one_all(monkeypatch):
    """By its largest matrix; long vectors do not count."""
    monkeypatch.setattr(speeds, "measured", lambda *_: {"entries": 600.0 * 600})
    small, large = nn.Linear(300, 300), nn.Linear(600, 600)
    small.register_buffer("long", torch.zeros(1_000_000))
    with using(2):
        assert threads_for(small) == 1
        assert threads_for(large) == 2
    with using(1):
        assert threads_for(large) == 1


def test_the_fastest_call_counts():
    """In CPU seconds, never zero: rates are divided by it."""
    assert 0 < fastest(lambda: None) < 0.1


def test_the_doctor_reports_threads_and_speeds(monkeypatch):
    """From which size on all threads are used, or who asked for how many."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with using(2):
        (found,) = doctor._threads()
    assert found.text.startswith("2 for a base with a matrix of ")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    (found,) = doctor._threads()
    assert found.text == "3, as OMP_NUM_THREADS asks"
    assert {c.name for c in doctor._speeds()} >= {"products", "head", "packing"}


def test_a_small_run_takes_one_thread_and_resumes_with_as_many(tmp_path, monkeypatch):
    """The number is that of the run's start, whatever is measured later; opened to look at, too."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(device, "_threads", lambda: 2)
    run = tmp_path / "run"
    steps = {
        "run.threads": 0,
        "defaults.train.steps": 2,
        "defaults.gate.min-gain": False,
    }
    with using(2):
        mgk.run("textmodel", out=run, set=steps, until="plain_text")
        assert torch.get_num_threads() == 1
        monkeypatch.setattr(setup, "threads_for", lambda _: 2)
        resume_run(run, until="medical_dictionary")
        assert torch.get_num_threads() == 1
        reopen(run)
        assert torch.get_num_threads() == 1
    started = open_journal(Store(run)).last("started")
    assert started["identity"]["environment.threads"] == "1"

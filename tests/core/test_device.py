"""The threads that a process takes."""

import os

import pytest
import torch

from mgk_core.model.device import set_up


@pytest.fixture
def threads():
    """Return what counts them after setting up; as many as before are set when the test has ended."""
    before = torch.get_num_threads()

    def count(wanted):
        set_up(torch.device("cpu"), threads=wanted, deterministic=False)
        return torch.get_num_threads()

    yield count
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("wanted", "asked", "found"), [(3, "2", 3), (0, "2", 2), (3, "", 3), (0, "1", 1)]
)
def test_the_configuration_comes_before_the_environment(
    threads, monkeypatch, wanted, asked, found
):
    """`run.threads`, then OMP_NUM_THREADS."""
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    assert threads(wanted) == found


@pytest.mark.parametrize("asked", ["", "0", "many", "-1", "2,1"])
def test_without_either_all_cpus_are_taken(threads, monkeypatch, asked):
    """What is no number of threads is not taken for one."""
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    usable = (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count()
    )
    assert threads(0) == usable

"""The doctor: each answer true of this machine, and wrong ones found."""

import pytest

from mgk_core.tools import doctor


def test_versions_are_compared_by_their_numbers():
    """2.10 is newer than 2.9; local parts and other bounds do not count."""
    assert doctor.satisfies("2.10.0", ">=2.9")
    assert not doctor.satisfies("2.9.1", ">=2.10")
    assert doctor.satisfies("2.13.0+cpu", ">=2.6")
    assert doctor.satisfies("1.0.0", "==1.0.0")
    assert not doctor.satisfies("1.0.1", "==1.0.0")
    assert doctor.satisfies("3.0", ">=2.0,<9")


def test_requirements_are_those_of_the_distribution():
    """Libraries, bounds and extras as the package's metadata have them."""
    found = {name: (bound, extra) for name, bound, extra in doctor.requirements()}
    assert found["torch"][1] is None
    assert found["torch"][0].startswith(">=")
    assert found["peft"][1] == "peft"


def test_the_smoke_test_holds_two_steps_against_float64(monkeypatch):
    """It passes here; an optimizer that does nothing is found."""
    import torch

    assert [c.status for c in doctor._smoke("cpu")] == ["ok"]
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: None)
    assert [c.status for c in doctor._smoke("cpu")] == ["error"]


def test_a_missing_library_is_an_error_and_a_missing_extra_is_told(monkeypatch):
    """With what to install."""
    import importlib.metadata

    real = importlib.metadata.version

    def version(name):
        if name in ("pluggy", "peft"):
            raise importlib.metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    found = list(doctor._libraries())
    wrong = next(c for c in found if c.status == "error")
    assert "pluggy is missing" in wrong.text
    assert "pip install 'pluggy" in wrong.mend
    assert any(
        c.name == "extra peft" and "pip install 'mgk[peft]'" in c.mend for c in found
    )


def test_a_check_that_raises_is_an_answer(tmp_path, monkeypatch):
    """A doctor does not die of the illness: the other checks go on."""

    def ill():
        raise OSError("torn library")
        yield

    monkeypatch.setattr(doctor, "_torch", ill)
    found = {c.name: c for c in doctor.examine(tmp_path)}
    assert found["torch"].status == "error"
    assert "torn library" in found["torch"].text
    assert found["plugins"].status == "ok"


def test_little_disk_is_told(tmp_path, monkeypatch):
    """Under a gigabyte is an error, a few a warning."""
    import shutil
    from types import SimpleNamespace

    for free, status in ((5e8, "error"), (3e9, "warning"), (8e9, "ok")):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free)
        )
        assert doctor._disk(tmp_path / "runs").status == status


@pytest.mark.parametrize(("limit", "status"), [(64, "warning"), (4096, "ok")])
def test_few_open_files_are_told(monkeypatch, limit, status):
    """A limit that a run would meet."""
    import resource

    monkeypatch.setattr(resource, "getrlimit", lambda _: (limit, limit))
    assert doctor._files().status == status

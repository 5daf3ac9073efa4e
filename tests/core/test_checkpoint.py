"""Checkpoints: everything comes back bit for bit; what is damaged is named and left out."""

from __future__ import annotations

import math
import random

import attrs
import numpy as np
import pytest
import torch

from mgk_core.contract.errors import DigestError, StoreError
from mgk_core.record.checkpoint import (
    Progress,
    list_checkpoints,
    load_checkpoint,
    newest_sound,
    rng_state,
    save_checkpoint,
    seed_all,
    set_rng_state,
)
from mgk_core.record.metrics_log import Mark
from mgk_core.record.store import Store

CPU = torch.device("cpu")


def draw():
    """Draw from every generator there is, the old one of numpy too."""
    old = (np.random.randn(), np.random.rand())  # noqa: NPY002 - what a plugin's library may use
    return (torch.rand(2).tolist(), random.gauss(0, 1), random.random(), *old)


class Holder:
    """Stands where an adapter or a step does: something with a state."""

    def __init__(self, **tensors):
        self.tensors = tensors

    def state_dict(self):
        return self.tensors


def save(store, step, keep=2, best=None, **progress):
    """Write a checkpoint of something."""
    state = Progress(step=step, **progress)
    adapter, optimizer = (
        Holder(a=torch.randn(3, 2)),
        Holder(m=torch.full((2,), float(step))),
    )
    save_checkpoint(store, "c", state, adapter, optimizer, best, CPU, keep=keep)
    return state, adapter


def test_everything_comes_back(tmp_path):
    """Progress, NaN in it included, tensors, and random numbers of torch, Python and numpy."""
    seed_all(3)
    draw()  # leaves half a pair of normal numbers behind in two of them
    state, adapter = save(
        Store(tmp_path), 4, best={"a": torch.ones(1)}, pending=[[math.nan, 0.0, 2.0, 1.0, math.inf, 0.1]],
        best_loss=1e-300, metrics=Mark(5, "x"), check=-0.0, observers=[None, {"k": [1]}],
    )  # fmt: skip
    expected = draw()
    loaded = load_checkpoint(tmp_path / "c/step-00000004")
    assert repr(loaded.progress) == repr(state)
    assert torch.equal(loaded.parts["adapter"]["a"], adapter.tensors["a"])
    assert loaded.parts["best"]["a"] == 1
    set_rng_state(loaded.parts["rng"], CPU)
    assert draw() == expected
    assert rng_state(CPU).keys() == loaded.parts["rng"].keys()


def test_every_field_of_progress_is_written(tmp_path):
    """A field that is added later is not forgotten."""
    values = {a.name: getattr(Progress(), a.name) for a in attrs.fields(Progress)}
    save(Store(tmp_path), 1)
    assert set(
        attrs.asdict(load_checkpoint(tmp_path / "c/step-00000001").progress)
    ) == set(values)


def test_the_last_n_are_kept(tmp_path):
    """Older ones go, whole, once the new one is there."""
    store = Store(tmp_path)
    for step in range(1, 6):
        save(store, step, keep=3)
    assert [p.name[-1] for p in list_checkpoints(tmp_path / "c")] == ["3", "4", "5"]
    assert len(list((tmp_path / "c").iterdir())) == 3


@pytest.mark.parametrize(
    "name",
    ["adapter.safetensors", "optimizer.safetensors", "rng.safetensors", "state.json"],
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_one_is_named_and_the_one_before_is_taken(tmp_path, name, damage):
    """Whichever file, however damaged."""
    store = Store(tmp_path)
    save(store, 1)
    save(store, 2)
    path = tmp_path / "c/step-00000002" / name
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data if damage == "flip" else data[:-3]))
    if damage == "remove":
        path.unlink()
    with pytest.raises((DigestError, StoreError), match=name):
        load_checkpoint(path.parent)
    loaded, wrong = newest_sound(tmp_path / "c")
    assert loaded.progress.step == 1
    assert len(wrong) == 1
    assert name in wrong[0]


def test_none_is_sound(tmp_path):
    """Without a sound checkpoint there is none, and foreign folders are none."""
    (tmp_path / "c/step-x").mkdir(parents=True)
    assert newest_sound(tmp_path / "c") == (None, [])
    (tmp_path / "c/step-00000001").mkdir()
    loaded, wrong = newest_sound(tmp_path / "c")
    assert loaded is None
    assert "no such file" in wrong[0]

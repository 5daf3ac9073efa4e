"""Every key of the base and of the tasks changes the weights, the function, or the data."""

from __future__ import annotations

from typing import Any

import attrs
import pytest
import torch

from mgk_textmodel.bundle import ReferenceBundle
from mgk_textmodel.data import load
from mgk_textmodel.network import build
from mgk_textmodel.specs import NoiseSpec, ReferenceSpec, TeacherSpec

BASE = {"widths": (64, 16, 32), "init_std": 0.2, "activation": "tanh", "seed": 1}
SHARED = {"metric": "perplexity", "seed": 1, "size": 33, "items": 7, "probe": "other"}
TEACHER = SHARED | {
    "teacher_std": 0.2,
    "shift": 3.0,
    "overlap": 0.9,
    "spread": 1.0,
    "noise_std": 1.0,
    "family": 1,
}


def outputs(**options: Any) -> torch.Tensor:
    """Return the network's outputs on fixed inputs."""
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return build(ReferenceSpec(type="reference", **options))(x)


def data(cls: Any, **options: Any) -> list[Any]:
    """Return what can be seen of a task."""
    bundle = ReferenceBundle(
        build(ReferenceSpec(type="reference")), torch.device("cpu")
    )
    found = load(cls(type=cls.__name__.removesuffix("Spec").lower(), **options), bundle)
    return [
        found.train.digest,
        *((p.name, p.metric, len(p.items), p.digest) for p in found.probes),
    ]


@pytest.mark.parametrize("key", BASE)
def test_a_key_of_the_base_changes_its_function(key: str) -> None:
    """The same inputs, other outputs."""
    assert not torch.equal(outputs(), outputs(**{key: BASE[key]}))


@pytest.mark.parametrize("key", TEACHER)
def test_a_key_of_the_teacher_changes_its_data(key: str) -> None:
    """Training data, probes, or their name."""
    assert data(TeacherSpec) != data(TeacherSpec, **{key: TEACHER[key]})


@pytest.mark.parametrize("key", SHARED)
def test_a_key_of_the_noise_changes_its_data(key: str) -> None:
    """Training data, probes, or their name."""
    assert data(NoiseSpec) != data(NoiseSpec, **{key: SHARED[key]})


def test_no_key_is_left_out() -> None:
    """The tables above name every key there is."""
    for cls, table in (
        (ReferenceSpec, BASE),
        (TeacherSpec, TEACHER),
        (NoiseSpec, SHARED),
    ):
        assert {f.name for f in attrs.fields(cls)} == {"type", *table}

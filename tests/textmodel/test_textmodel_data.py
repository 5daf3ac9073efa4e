"""The tasks: fixed, different per phase, with a floor that is really theirs."""

from __future__ import annotations

import math

import pytest
import torch

from mgk_core.contract.bundle import PhaseData, TrainSet
from mgk_core.contract.errors import InputError
from mgk_textmodel.bundle import ReferenceBundle
from mgk_textmodel.data import load, teacher_draw
from mgk_textmodel.network import build
from mgk_textmodel.specs import NoiseSpec, ReferenceSpec, TeacherSpec

BUNDLE = ReferenceBundle(build(ReferenceSpec(type="reference")), torch.device("cpu"))


def teacher(**options: object) -> PhaseData:
    """Load a teacher's data."""
    return load(TeacherSpec(type="teacher", **options), BUNDLE)  # type: ignore[arg-type]


def test_a_batch_is_a_pure_function_of_its_rows() -> None:
    """The same rows give the same examples in the order asked for, whatever was asked before."""
    train = teacher().train
    assert isinstance(train, TrainSet)
    assert len(train) == 320
    one = train.batch([3, 1])
    train.batch(list(range(16)))
    two = train.batch([1, 3])
    assert torch.equal(one.inputs, two.inputs.flip(0))
    assert torch.equal(one.targets, two.targets.flip(0))
    assert float(one.count) == 2


def test_the_same_spec_gives_the_same_data() -> None:
    """Digests, training rows and probes are equal twice; another seed changes all of them."""
    one, two, other = teacher(seed=3), teacher(seed=3), teacher(seed=4)
    digests = [
        [d.train.digest, *(p.digest for p in d.probes)] for d in (one, two, other)
    ]
    assert digests[0] == digests[1]
    assert not set(digests[0]) & set(digests[2])
    assert len(set(digests[0])) == 3


def test_probes_are_held_out() -> None:
    """No example of the training set stands in a probe, nor one of dev in test."""
    data = teacher(size=100, items=50)
    parts = [
        data.train.batch(list(range(100))).inputs,
        *(torch.cat([i.inputs for i in p.items]) for p in data.probes),
    ]
    rows = {tuple(row.tolist()) for part in parts for row in part}
    assert len(rows) == 100 + 50 + 50
    assert {p.split for p in data.probes} == {"dev", "test"}


@pytest.mark.parametrize("noise_std", [0.5, 1.0])
def test_the_floor_is_the_teachers_own_loss(noise_std: float) -> None:
    """The teacher itself, told from many noiseless examples, reaches the floor and nothing below it.

    Its loss is 32 · σ² times a χ² mean over 32 · 4096 squares: relative standard error √(2 / n).
    """
    options = {"seed": 5, "noise_std": noise_std}
    quiet = teacher_draw(TeacherSpec(type="teacher", seed=5, noise_std=0.0), 64, 32)
    inputs, targets = quiet(512, torch.Generator().manual_seed(0))
    weights = torch.linalg.lstsq(inputs.double(), targets.double()).solution
    probe = next(p for p in teacher(**options, items=4096).probes if p.split == "test")
    x, y = (
        torch.cat([getattr(i, k) for i in probe.items]).double()
        for k in ("inputs", "targets")
    )
    loss = float(((x @ weights - y) ** 2).sum(1).mean())
    assert probe.floor == pytest.approx(32 * noise_std**2)
    assert loss == pytest.approx(probe.floor, rel=5 * math.sqrt(2 / (32 * 4096)))


def test_tasks_of_a_family_share_a_part_of_their_mean() -> None:
    """The cosine between two tasks' means is the overlap, up to the chance angle of their own parts."""
    cosines = {}
    for overlap in (0.0, 0.5, 1.0):
        draws = [
            teacher_draw(TeacherSpec(type="teacher", seed=s, overlap=overlap), 64, 32)
            for s in (1, 2)
        ]
        means = [d(4000, torch.Generator().manual_seed(0))[0].mean(0) for d in draws]
        cosines[overlap] = float(
            torch.nn.functional.cosine_similarity(means[0], means[1], dim=0)
        )
    # two random unit vectors in 64 dimensions have a cosine of 1 / √64 = .125 standard deviations
    assert abs(cosines[0.0]) < 3 * 0.125
    assert abs(cosines[0.5] - 0.5) < 3 * 0.125
    assert cosines[1.0] > 0.999


def test_inputs_and_teacher_have_the_declared_sizes() -> None:
    """shift, spread and teacher_std are what the sample shows."""
    draw = teacher_draw(
        TeacherSpec(
            type="teacher", shift=7.0, spread=2.0, teacher_std=0.2, noise_std=0.0
        ),
        64,
        32,
    )
    inputs, targets = draw(5000, torch.Generator().manual_seed(0))
    assert float(inputs.mean(0).norm()) == pytest.approx(
        7.0, abs=3 * 2.0 * 8 / math.sqrt(5000)
    )
    assert float(inputs.std(0).mean()) == pytest.approx(2.0, rel=0.02)
    weights = torch.linalg.lstsq(inputs.double(), targets.double()).solution
    assert float(weights.std()) == pytest.approx(0.2, rel=5 / math.sqrt(2 * 64 * 32))


def test_noise_is_unrelated_to_its_inputs() -> None:
    """The best linear map leaves the targets' own variance: nothing can be learnt."""
    data = load(NoiseSpec(type="noise", size=8000), BUNDLE)
    batch = data.train.batch(list(range(8000)))
    weights = torch.linalg.lstsq(batch.inputs, batch.targets).solution
    left = float(((batch.inputs @ weights - batch.targets) ** 2).sum(1).mean())
    # 64 regressors explain 64 / 8000 of pure noise
    assert left == pytest.approx(
        32 * (1 - 64 / 8000), rel=5 * math.sqrt(2 / (32 * 8000))
    )
    assert {p.floor for p in data.probes} == {32.0}


def test_teacher_and_noise_of_one_seed_differ() -> None:
    """The two kinds draw from streams of their own."""
    assert (
        teacher(seed=1).train.digest
        != load(NoiseSpec(type="noise", seed=1), BUNDLE).train.digest
    )


def test_probe_names_and_sizes_are_as_asked() -> None:
    """Name and number of items come from the spec; a default name tells tasks apart."""
    data = teacher(seed=2, items=9, probe="mine", size=5)
    assert [(p.name, p.split, len(p.items)) for p in data.probes] == [
        ("mine", "dev", 9),
        ("mine", "test", 9),
    ]
    assert len(data.train) == 5
    assert {p.name for p in teacher(seed=2).probes} == {"teacher-2"}
    assert len(data.verify[0].inputs) == 64
    assert not data.calibration


def test_another_base_is_refused() -> None:
    """The tasks fit the reference network only, and say so."""
    with pytest.raises(InputError, match="base type 'reference'"):
        load(TeacherSpec(type="teacher"), object())

"""Three suites on scikit-learn's digits: 1,797 images of 8 × 8, ten classes.

permuted: each later task shuffles the pixels in its own way. rotated: each turns the images by
another 36 degrees. split: five pairs of classes; which pair is asked for is known (the other
logits are masked). A fifth of the images, drawn by the seed, is for testing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from attrs import define, frozen
from torch import Tensor, nn
from torch.nn import functional

from mgk_bench.tasks import Recipe, Suite, Task
from mgk_core.contract.bundle import OptionScores
from mgk_core.contract.errors import EnvironmentFault, InputError

TASKS, CLASSES, SIDE = 5, 10, 8
DEGREES = 36
NAMES = ("permuted", "rotated", "split")
WIDTHS = (64, 256, 256, 10)


@frozen(eq=False)
class Labelled:
    """Images with labels. inputs: (n, 64)   labels: (n,)   mask: (n, 10), added to the logits."""

    inputs: Tensor
    labels: Tensor
    mask: Tensor

    def __getitem__(self, rows: Any) -> Labelled:
        return Labelled(self.inputs[rows], self.labels[rows], self.mask[rows])


@define(eq=False)
class Rows:
    """Training examples by row."""

    data: Labelled
    digest: str

    def __len__(self) -> int:
        return len(self.data.labels)

    def batch(self, rows: Sequence[int]) -> Labelled:
        """Collate rows, in the order given."""
        return self.data[torch.tensor(rows)]


@define(eq=False)
class DigitsBundle:
    """A perceptron 64-256-256-10 with ReLU and its cross-entropy."""

    model: nn.Module
    device: torch.device = torch.device("cpu")
    tokenizer: Any = None

    def loss(self, batch: Labelled) -> tuple[Tensor, Tensor]:
        """Return (summed cross-entropy, number of images)."""
        total = functional.cross_entropy(
            self.outputs(batch), batch.labels, reduction="sum"
        )
        return total, torch.tensor(float(len(batch.labels)))

    def outputs(self, batch: Labelled, positions: Tensor | None = None) -> Tensor:
        """Return logits, (n, 10), with the task's mask."""
        chosen = batch if positions is None else batch[positions]
        logits: Tensor = self.model(chosen.inputs) + chosen.mask
        return logits

    def score(self, items: Sequence[Any]) -> list[OptionScores]:
        """Refuse: images have no options."""
        raise InputError(
            f"the digits network cannot score the options of {len(items)} items"
        )

    def valid(self, batch: Labelled) -> Tensor | None:
        """Return None: there is no padding."""
        return None

    def unpack(self, batch: Labelled) -> list[Labelled]:
        """Return the images one by one."""
        return [batch[i : i + 1] for i in range(len(batch.labels))]

    def pack(self, examples: Sequence[Labelled]) -> Labelled:
        """Return one batch of them."""
        parts = zip(*((e.inputs, e.labels, e.mask) for e in examples), strict=True)
        return Labelled(*(torch.cat(part) for part in parts))

    def save(self, directory: Path) -> None:
        """Refuse: a benchmark's network is not kept."""
        raise InputError(f"the digits network is not written to {directory}")


def perceptron(seed: int) -> DigitsBundle:
    """Return a fresh network, by torch's own initialisation under this seed."""
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        layers: list[nn.Module] = []
        for inside, outside in pairwise(WIDTHS):
            layers += [nn.Linear(inside, outside), nn.ReLU()]
        return DigitsBundle(nn.Sequential(*layers[:-1]))


def accuracy(bundle: DigitsBundle, task: Task) -> float:
    """Share of a task's test images that are classified right, in percent."""
    with torch.no_grad():
        right = bundle.outputs(task.test).argmax(1) == task.test.labels
    return 100.0 * float(right.float().mean())


def suite(name: str, seed: int) -> Suite:
    """Make one of the three suites; the seed draws the split, the permutations and the weights."""
    images, labels = _load()
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(labels), generator=generator)
    cut = len(labels) * 4 // 5
    tasks = []
    for number in range(TASKS):
        inputs, mask, chosen = _variant(name, number, images, labels, generator)
        whole = Labelled(inputs, labels, mask.expand(len(labels), CLASSES))
        train, test = (whole[rows[chosen[rows]]] for rows in (order[:cut], order[cut:]))
        digest = hashlib.sha256(
            train.inputs.numpy().tobytes() + train.labels.numpy().tobytes()
        ).hexdigest()
        tasks.append(Task(f"{name}-{number}", Rows(train, digest), test))
    recipe = Recipe()
    settings = {"recipe": recipe, "widths": WIDTHS, "tasks": TASKS}
    return Suite(name, "accuracy, %", tuple(tasks), perceptron, accuracy, settings)  # type: ignore[arg-type]


def _load() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise EnvironmentFault(
            "the digits come with scikit-learn; install it: pip install 'mgk[bench]'"
        ) from None
    raw = load_digits()
    return torch.tensor(raw.images, dtype=torch.float32) / 16, torch.tensor(raw.target)


def _variant(
    name: str, number: int, images: Tensor, labels: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Return one task's inputs (n, 64), logit mask (10,), and which images take part (n,)."""
    flat, mask = images.flatten(1), torch.zeros(CLASSES)
    everyone = torch.ones(len(labels), dtype=torch.bool)
    if name == "permuted":
        shuffled = (
            torch.randperm(flat.shape[1], generator=generator)
            if number
            else torch.arange(flat.shape[1])
        )
        return flat[:, shuffled], mask, everyone
    if name == "rotated":
        return rotated(images, DEGREES * number).flatten(1), mask, everyone
    pair = torch.tensor([2 * number, 2 * number + 1])
    mask = torch.full((CLASSES,), -1e9).index_fill(0, pair, 0.0)
    return flat, mask, torch.isin(labels, pair)


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Turn images about their centre, bilinear, zeros outside. images: (n, 8, 8)."""
    if degrees == 0:
        return images
    angle = torch.deg2rad(torch.tensor(float(degrees)))
    turn = torch.tensor(
        [[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]]
    )
    grid = functional.affine_grid(
        turn.expand(len(images), 2, 3),
        [len(images), 1, SIDE, SIDE],
        align_corners=False,
    )
    return functional.grid_sample(images[:, None], grid, align_corners=False)[:, 0]

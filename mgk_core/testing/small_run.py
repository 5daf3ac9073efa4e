"""A phase of a run in miniature: a small language model, an adapter on it, data, a context.

For conformance tests of what acts inside a phase: retention methods, loss terms, observers,
recoveries, data readers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import define, evolve, frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import Factors
from mgk_core.contract.bundle import Batch, Bundle, PhaseData, Tokens
from mgk_core.contract.context import PhaseContext, Remembered
from mgk_core.contract.outcome import Proposal
from mgk_core.contract.settings import PhaseConfig, RunConfig
from mgk_core.contract.specs import Slot, Spec
from mgk_core.testing.gates import PROBES, rows_before
from mgk_core.testing.history import shake
from mgk_core.testing.plain_conversation import WORDS
from mgk_core.testing.probes import BigramBundle
from mgk_core.testing.reference import DenseAdapter, attach_dense


class SmallBundle(BigramBundle):
    """A language model of two linear layers behind an embedding, without dropout."""

    def __init__(self) -> None:
        super().__init__(0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layers = (
                nn.Embedding(WORDS, 5),
                nn.Linear(5, 9),
                nn.GELU(),
                nn.Linear(9, WORDS),
            )
            self.model = (
                nn.Sequential(*layers).eval().requires_grad_(requires_grad=False)
            )

    def predictions(
        self, batch: list[Tokens], *, embedding_noise: float = 0.0
    ) -> SmallPredictions:
        """Return what is predicted where labels are, without noise: the model is evaluated."""
        del embedding_noise
        found = [
            (last, label, number)
            for number, example in enumerate(batch)
            for last, label in zip(example.ids, example.labels[1:], strict=False)
            if label >= 0
        ]
        last, tokens, example = torch.tensor(found).unbind(1)
        return SmallPredictions(self.model(last), tokens, example)

    def unpack(self, batch: list[Tokens]) -> list[Tokens]:
        """Return a batch's examples."""
        return list(batch)


@frozen(eq=False)
class SmallPredictions:
    """Logits (N, words) of the small model, at N positions with a label."""

    rows: Tensor
    tokens: Tensor
    example: Tensor

    def logprobs(self) -> Tensor:
        """Return the log-likelihood of each label, (N,)."""
        found = self.rows.log_softmax(-1).gather(1, self.tokens[:, None])
        return found.squeeze(1)

    def logits(self, part: slice) -> Tensor:
        """Return the logits at some of the positions."""
        return self.rows[part]


@define(eq=False)
class SmallTrainSet:
    """Twelve examples of eight tokens."""

    bundle: SmallBundle
    examples: Sequence[Tokens]
    digest: str

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, rows: Sequence[int]) -> Batch:
        """Return these rows as one batch."""
        return self.bundle.pack([self.examples[i] for i in rows])


def small_data(bundle: SmallBundle, seed: int = 0) -> PhaseData:
    """Return training data and one batch each for dev, verification and calibration."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(0, WORDS, (12, 8), generator=generator).tolist()
    examples = [Tokens(tuple(r), tuple(r)) for r in rows]
    digest = hashlib.sha256(repr(rows).encode()).hexdigest()
    batch = bundle.pack(examples[:4])
    train = SmallTrainSet(bundle, examples, digest)
    return PhaseData(train, dev=(batch,), verify=(batch,), calibration=(batch,))


Collect = Callable[[PhaseContext], "dict[str, Tensor] | None"]


def small_phase(
    slot: Slot, specs: Sequence[Spec], *, collect: Collect | None = None
) -> PhaseContext:
    """Return the second of two phases, which names ``specs`` in ``slot``, with a trained adapter.

    :param collect: gives the statistics of the base and of the first phase, or None
    """
    bundle = SmallBundle()
    none = Spec(type="kit")

    def phase(name: str, own: Sequence[Spec]) -> PhaseConfig:
        named: dict[str, Any] = {slot: tuple(own)}
        return PhaseConfig(
            name=name,
            data=none,
            adapter=none,
            optimizer=none,
            step=none,
            merge=none,
            **named,
        )

    config = RunConfig(
        name="kit", base=none, phases=(phase("early", specs), phase("now", specs))
    )
    data = small_data(bundle)
    weights = ("1.weight", "3.weight")
    ctx = PhaseContext(
        config=config, phase=config.phases[0], index=0, bundle=bundle, device=torch.device("cpu"),
        directory=Path(), data=data, steps=10, targets=weights, probes=PROBES,
        scores=tuple(rows_before()), proposal=Proposal(),
    )  # fmt: skip
    history: list[Remembered] = []
    for name, base in (("base", True), ("early", False)):
        ctx.base_phase = base
        kept = collect(ctx) if collect is not None else None
        if kept:
            history.append(Remembered(name, Path(), _reader(dict(kept))))
    ctx.base_phase, ctx.history = False, tuple(history)
    ctx.phase, ctx.index, ctx.data = config.phases[1], 1, small_data(bundle, seed=1)
    adapter = attach_dense(bundle.model, "now", cls=WithFactors)
    shake(adapter)
    ctx.adapter = adapter
    return ctx


class WithFactors(DenseAdapter):
    """A dense adapter that names its factors, D = D · 1, for methods that need them."""

    def factors(self, name: str) -> Factors | None:
        """Return D and the identity."""
        delta = self.parts[name].get_parameter("delta")
        return Factors(torch.eye(delta.shape[1], dtype=delta.dtype), delta, 1.0)


def _reader(kept: dict[str, Tensor]) -> Callable[[], dict[str, Tensor]]:
    return lambda: dict(kept)


def without(ctx: PhaseContext, slot: Slot) -> PhaseContext:
    """Return the context of a run whose phases name nothing in ``slot``."""
    named: dict[str, Any] = {slot: ()}
    config = evolve(
        ctx.config, phases=tuple(evolve(p, **named) for p in ctx.config.phases)
    )
    return evolve(ctx, config=config, phase=config.phases[ctx.index])


def weights_of(bundle: Bundle) -> list[Tensor]:
    """Return copies of all parameters of a bundle's model."""
    return [p.detach().clone() for p in bundle.model.parameters()]


def same_weights(before: Sequence[Tensor], bundle: Bundle) -> bool:
    """Return whether the parameters are unchanged, bit for bit."""
    now = list(bundle.model.parameters())
    return len(now) == len(before) and all(
        torch.equal(a, b) for a, b in zip(before, now, strict=True)
    )

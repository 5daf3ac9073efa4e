"""Initialisations from what a weight is given: CorDA, LoRA-Null, EVA.

Each weight's inputs x are summed up as C = mean of x xᵀ over texts that run through the bare base.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from attrs import define
from torch import Tensor

from mgk_core.contract.bundle import Batch
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_core.model.statistics import visit_layers
from mgk_lora.adapter import LoraAdapter
from mgk_lora.init import dense_matrix
from mgk_lora.kinds import Candidate
from mgk_lora.spec import LoraSpec

AT_ONCE = 1 << 30
"""Bytes of second moments that are kept at once; weights beyond that get a pass of their own."""
DAMPING, INVERTED = 0.01, 0.05
"""CorDA's first share of C's mean diagonal that is added, and how far C C⁻¹ may be from 1 (their code)."""


@define(eq=False)
class Inputs:
    """Sums over one weight's inputs: Σ x xᵀ (d, d) and Σ x (d,), float64, and their number."""

    squares: Tensor
    total: Tensor
    count: int = 0

    def add(self, x: Tensor) -> None:
        """Take in inputs, (positions, d)."""
        wide = x.float()
        self.squares += (wide.t() @ wide).double()
        self.total += wide.sum(0).double()
        self.count += len(x)

    @property
    def moment(self) -> Tensor:
        """C, the mean of x xᵀ."""
        return self.squares / self.count

    @property
    def covariance(self) -> Tensor:
        """The mean of (x − μ)(x − μ)ᵀ."""
        mean = self.total / self.count
        return self.moment - torch.outer(mean, mean)


def initialise(adapter: LoraAdapter, ctx: PhaseContext) -> str:
    """Set A and B of every weight whose inputs are seen; return what was done.

    Weights without inputs of their own (embeddings, experts, attention's packed projections) keep
    their random A and a B of zero.

    :raises InputError: no text to take the inputs from
    """
    spec = adapter.spec
    batches = _batches(spec, ctx)
    done, positions = 0, 0
    for group in _groups(adapter.chosen):
        seen = _inputs(group, ctx, batches)
        for candidate in group:
            found = seen.get(candidate.weight)
            if found is not None and found.count:
                _set(adapter, candidate, found)
                done, positions = done + 1, found.count
    source = "training data" if spec.init == "eva" else "calibration text"
    rest = len(adapter.chosen) - done
    more = (
        f"; {rest} weights without inputs of their own begin at random" if rest else ""
    )
    return f"init {spec.init}: {done} weights from {positions:,} positions of {source}{more}"


def _batches(spec: LoraSpec, ctx: PhaseContext) -> Sequence[Batch]:
    assert ctx.data is not None  # noqa: S101 - adapters are initialised after the data is loaded
    if spec.init == "eva":
        order = torch.randperm(len(ctx.data.train), generator=ctx.generator(salt=5))
        rows = order[: spec.init_rows].tolist()
        return list(ctx.train_batches(rows, ctx.phase.train.micro))
    if not ctx.data.calibration:
        raise InputError(
            f"phases.{ctx.phase.name}.adapter.init = {spec.init!r} needs texts that represent what the model must keep:"
            f" set phases.{ctx.phase.name}.data.calibration"
        )
    return ctx.data.calibration


def _groups(chosen: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Yield weights whose second moments fit into `AT_ONCE` together."""
    group: list[Candidate] = []
    size = 0
    for candidate in chosen:
        if candidate.kind == "embedding" or candidate.layout.batched:
            continue
        needed = 8 * candidate.layout.cols**2
        if group and size + needed > AT_ONCE:
            yield group
            group, size = [], 0
        group.append(candidate)
        size += needed
    if group:
        yield group


def _inputs(
    group: Sequence[Candidate], ctx: PhaseContext, batches: Sequence[Batch]
) -> dict[str, Inputs]:
    seen: dict[str, Inputs] = {}

    def visit(name: str, x: Tensor, gradient: Tensor | None) -> None:
        del gradient
        if name not in seen:
            zeros = x.new_zeros(x.shape[1], dtype=torch.float64)
            seen[name] = Inputs(torch.outer(zeros, zeros), zeros)
        seen[name].add(x)

    names = [candidate.weight for candidate in group]
    visit_layers(ctx.bundle, names, batches, visit, gradients=False)
    return seen


@torch.no_grad()
def _set(adapter: LoraAdapter, candidate: Candidate, found: Inputs) -> None:
    pair, rank = (
        adapter.pair(candidate.weight),
        adapter.pair(candidate.weight).a.shape[0],
    )
    if adapter.spec.init == "eva":
        pair.a.copy_(eva(found.covariance, rank))
        return
    make = corda if adapter.spec.init == "corda" else lora_null
    weight = dense_matrix(candidate)[0].double()
    a, b = make(weight, found.moment, rank, pair.scale)
    assert pair.a0 is not None and pair.b0 is not None  # noqa: S101, PT018 - see `mgk_lora.init.start`
    for live, first, value in ((pair.a, pair.a0, a), (pair.b, pair.b0, b)):
        live.copy_(value)
        first.copy_(live)


def corda(
    weight: Tensor, moment: Tensor, rank: int, scale: float
) -> tuple[Tensor, Tensor]:
    """CorDA in its knowledge-preserved mode (Yang et al. 2024, arXiv 2406.05223, eq. 2-5).

    With W C = U S Vᵀ, W = U S (Vᵀ C⁻¹); the ``rank`` least parts, which the given texts use least, are
    what is trained: scale · B₀A₀ = U_r S_r (Vᵀ C⁻¹)_r. C is normalised to a mean diagonal of 1 and
    damped until it can be inverted.

    weight: (out, in)   moment: (in, in)   returns: A (rank, in), B (out, rank)
    """
    c, inverse = _invertible(moment / moment.diagonal().mean().clamp(min=1e-30))
    u, s, vh = torch.linalg.svd(weight @ c, full_matrices=False)
    part = slice(s.shape[0] - rank, None)
    root = (s[part] / scale).sqrt()
    return root[:, None] * (vh[part] @ inverse), u[:, part] * root


def _invertible(c: Tensor) -> tuple[Tensor, Tensor]:
    """Return (C + damping, its inverse): the least damping, doubled from `DAMPING`, that inverts well."""
    eye, damping = torch.eye(len(c), dtype=c.dtype, device=c.device), DAMPING
    while True:
        damped = c + eye * damping * c.diagonal().mean().clamp(min=1e-30)
        inverse = torch.linalg.inv(damped)
        if float(torch.dist(damped @ inverse, eye)) < INVERTED:
            return damped, inverse
        damping *= 2


def lora_null(
    weight: Tensor, moment: Tensor, rank: int, scale: float
) -> tuple[Tensor, Tensor]:
    """LoRA-Null (Tang et al. 2025, arXiv 2503.02659): W projected onto the inputs' null space.

    N: the ``rank`` eigenvectors of C with the least eigenvalues, (in, rank). W N Nᵀ = U S Vᵀ and
    scale · B₀A₀ = U_r S_r V_rᵀ: A's rows are directions in which the given texts hardly reach.

    weight: (out, in)   moment: (in, in)   returns: A (rank, in), B (out, rank)
    """
    _, vectors = torch.linalg.eigh(moment)  # ascending
    null = vectors[:, :rank]
    u, s, vh = torch.linalg.svd(weight @ null, full_matrices=False)  # of rank columns
    root = (s / scale).sqrt()
    return root[:, None] * (vh @ null.t()), u * root


def eva(covariance: Tensor, rank: int) -> Tensor:
    """EVA (Paischer et al. 2024, arXiv 2410.07170): A = the directions in which the inputs vary most.

    The first ``rank`` principal components of the phase's own inputs, each with its largest entry
    positive; B is zero. The rank is the same for every weight (ρ = 1).

    covariance: (in, in)   returns: A (rank, in)
    """
    _, vectors = torch.linalg.eigh(covariance)
    a = vectors.flip(1)[:, :rank].t()
    largest = a.gather(1, a.abs().argmax(1, keepdim=True))
    signed: Tensor = a * largest.sign()
    return signed

"""Keeping examples of earlier phases as tensors, and making batches of them again.

An example is what `Unpacks.unpack` takes a batch apart into: `Tokens`, or an attrs class whose
fields are tensors. A field is kept as all its values one behind the other, with the shape of each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from mgk_core.contract.bundle import (
    Batch,
    Bundle,
    LanguageBundle,
    Tokens,
    require_unpacks,
)
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_retention.kept import REPLAY
from mgk_retention.specs import ReplaySpec

IGNORED = -100
LEAST = 16
"""Examples that are kept at least, where there are so many."""


def as_tensors(examples: Sequence[Any]) -> dict[str, Tensor]:
    """Return examples as tensors: per field ``values`` (all, flat) and ``shapes`` (examples, dims)."""
    kept: dict[str, Tensor] = {}
    for attribute in attrs.fields(type(examples[0])):
        values = [torch.as_tensor(getattr(e, attribute.name)) for e in examples]
        values = [v.to(torch.int32) if v.dtype == torch.int64 else v for v in values]
        kept[f"{attribute.name}/values"] = torch.cat(
            [v.reshape(-1) for v in values]
        ).cpu()
        kept[f"{attribute.name}/shapes"] = torch.tensor(
            [list(v.shape) for v in values], dtype=torch.int32
        )
    return kept


def from_tensors(
    kept: Mapping[str, Tensor], kind: type[Any], device: torch.device
) -> list[Any]:
    """Return the examples of `as_tensors`, rebuilt as instances of ``kind``."""
    columns = {}
    for attribute in attrs.fields(kind):
        shapes = kept[f"{attribute.name}/shapes"].tolist()
        values = kept[f"{attribute.name}/values"]
        sizes = [int(torch.Size(s).numel()) for s in shapes]
        pieces = torch.split(values, sizes)
        columns[attribute.name] = [
            p.reshape(s) for p, s in zip(pieces, shapes, strict=True)
        ]
    rows = zip(*columns.values(), strict=True)
    return [
        kind(**{n: _field(kind, v, device) for n, v in zip(columns, row, strict=True)})
        for row in rows
    ]


def _field(kind: type[Any], value: Tensor, device: torch.device) -> Any:
    """Return a field as its class has it: `Tokens` holds plain integers, others tensors (ids as int64)."""
    if kind is Tokens:
        return tuple(value.tolist()) if value.dim() else int(value)
    return value.to(device, torch.int64 if value.dtype == torch.int32 else value.dtype)


def keep_examples(ctx: PhaseContext, spec: ReplaySpec) -> dict[str, Tensor]:
    """Choose examples by the phase's own seed, each with the same chance, and return them as tensors."""
    assert ctx.data is not None  # noqa: S101 - the runner loads data first
    bundle, generator = require_unpacks(ctx.bundle, spec.type), ctx.generator(salt=29)
    if ctx.base_phase:
        pool: Iterable[Batch] = ctx.data.calibration
        examples = [e for batch in pool for e in bundle.unpack(batch)]
        chosen = [
            examples[i]
            for i in _choose(len(examples), spec.calibration_share, generator)
        ]
    else:
        rows = _choose(len(ctx.data.train), spec.share, generator)
        batches = [bundle.unpack(ctx.data.train.batch([row])) for row in rows]
        # Unwanted answers have no labels: of one alone there is no mean loss to replay.
        chosen = [e for batch in batches for e in batch if _teaches(e)]
    if spec.source == "generated":
        chosen = generated(ctx.bundle, chosen, spec)
    return {REPLAY + k: v for k, v in as_tensors(chosen).items()} if chosen else {}


def _teaches(example: Any) -> bool:
    """Return whether an example has something to learn; of other kinds than `Tokens`, always."""
    if not isinstance(example, Tokens):
        return True
    return any(label != IGNORED for label in example.labels)


def _choose(n: int, share: float, generator: torch.Generator) -> list[int]:
    if share == 0:
        return []
    count = min(n, max(LEAST, round(share * n)))
    return torch.randperm(n, generator=generator)[:count].tolist()


def generated(
    bundle: Bundle, examples: Sequence[Any], spec: ReplaySpec
) -> list[Tokens]:
    """Let the model itself continue the first tokens of each example; everything it generates is learned.

    For where old data may not be kept: of an example only its first ``prompt_tokens`` remain.
    """
    if not isinstance(bundle, LanguageBundle) or not all(
        isinstance(e, Tokens) for e in examples
    ):
        raise InputError(
            "replay: source = 'generated' needs a language model as base; use source = 'kept'"
        )
    prompts = [list(e.ids[: spec.prompt_tokens]) for e in examples]
    made = bundle.generate(prompts, max_new_tokens=spec.new_tokens)
    texts = [tuple(p + m) for p, m in zip(prompts, made, strict=True)]
    return [Tokens(t, t) for t in texts if len(t) > 1]

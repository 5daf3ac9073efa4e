"""What a user should know of an adapter before it is trained: ranks that were cut, weights left out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from torch import nn

from mgk_core.contract.adapter import may_adapt
from mgk_core.model.targets import ALL_LINEAR
from mgk_lora.kinds import Candidate, Layout

NAMED = 3
"""How many names a note lists."""


def largest_rank(layout: Layout) -> int:
    """Return the rank beyond which a delta of this layout gains nothing: the smaller side."""
    return min(layout.rows, layout.cols)


def cut_ranks(asked: Mapping[str, int], used: Mapping[str, int]) -> Iterator[str]:
    """Yield a note where ranks were cut. asked, used: weight name → rank."""
    cut = [name for name, rank in asked.items() if used[name] < rank]
    if cut:
        names = [f"{name} ({asked[name]} → {used[name]})" for name in cut]
        yield (
            f"the rank of {len(cut)} weights is cut to their smaller side, their scale unchanged:"
            f" {_some(names)}"
        )


def left_out(
    model: nn.Module,
    patterns: Sequence[str],
    everything: Sequence[Candidate],
    chosen: Sequence[Candidate],
) -> Iterator[str]:
    """Yield a note where ``all-linear`` leaves out experts, which are stacks of matrices, or routers."""
    if ALL_LINEAR not in patterns:
        return
    taken = {candidate.weight for candidate in chosen}
    missed = [
        c
        for c in everything
        if c.kind == "weight" and c.weight not in taken and may_adapt(model, c.weight)
    ]
    matrices = [
        c for c in missed if c.layout.batched or isinstance(c.module, nn.Linear)
    ]
    if not matrices:
        return
    count = sum(c.parameter.numel() for c in matrices)
    total = sum(p.numel() for p in model.parameters())
    ways = sorted({_pattern(c.name) for c in matrices})
    yield (
        f"'all-linear' leaves out {len(matrices)} weights that are not linear modules, such as experts"
        f" and routers: {count:,} of {total:,} parameters ({count / total:.0%}); add {_some(ways)}"
        " to targets to adapt them"
    )


def _pattern(name: str) -> str:
    """Return a glob for this weight in every layer: ``*.experts.gate_up_proj``."""
    return "*." + ".".join(name.split(".")[-2:])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more

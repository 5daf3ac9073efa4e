"""What is refused before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping

from mgk_core.contract.adapter import Adapter, Additive, LowRank, ModelState, Target
from mgk_core.contract.errors import MergeError
from mgk_core.contract.outcome import Proposal


def check(
    state: ModelState,
    adapter: Adapter,
    proposal: Proposal,
    targets: Mapping[str, Target],
) -> None:
    """Raise `MergeError` where a merge would be wrong: not attached, merged already, out of order."""
    if not any(a is adapter for a in state.adapters):
        raise MergeError(
            f"adapter {adapter.name!r} is not attached to this model (merged or detached already?)"
        )
    if any(a is adapter for a in state.merged):
        raise MergeError(
            f"adapter {adapter.name!r} is merged already; undo that merge first, or detach it"
        )
    if proposal.refuse is not None:
        raise MergeError(f"the merge of {adapter.name!r} is refused: {proposal.refuse}")
    if not targets:
        raise MergeError(f"adapter {adapter.name!r} names no weight to merge into")
    _check_weights(targets)
    _check_order(state, adapter, targets)


def _check_weights(targets: Mapping[str, Target]) -> None:
    seen: dict[int, str] = {}
    for name, target in targets.items():
        parameter = target.parameter
        if not parameter.is_floating_point():
            raise MergeError(
                f"{name}: its numbers are packed ({parameter.dtype}): the rule 'exact' merges into plain weights only;"
                " set merge.type to 'dequantized' or 'original', or take an unquantized base"
            )
        other = seen.setdefault(id(parameter), name)
        if other != name:
            raise MergeError(
                f"{name} and {other} are one tensor (tied): the delta would be merged twice"
            )


def _check_order(
    state: ModelState, adapter: Adapter, targets: Mapping[str, Target]
) -> None:
    """Deltas add up in any order; anything else acts on the weight as the adapters before it left it."""
    for earlier in state.adapters:
        if earlier is adapter:
            return
        if any(earlier is a for a in state.merged):
            continue
        shared = [
            n
            for n in targets
            if n in earlier.targets() and targets[n].parameter.dim() > 1
        ]
        for name in shared:
            if not (_additive(earlier, name) and _additive(adapter, name)):
                raise MergeError(
                    f"{name}: adapter {earlier.name!r} was attached before {adapter.name!r} and one of them is more than"
                    f" an added delta, so the order counts: merge or detach {earlier.name!r} first"
                )


def _additive(adapter: Adapter, name: str) -> bool:
    if isinstance(adapter, LowRank) and adapter.factors(name) is not None:
        return True
    return (
        isinstance(adapter, Additive) and adapter.delta(name, slice(0, 0)) is not None
    )

"""The keys of the adapter type ``vera``."""

from __future__ import annotations

from attrs import frozen

from mgk_core.contract.specs import Spec, above, at_least, option


@frozen(kw_only=True)
class VeraSpec(Spec):
    """VeRA: output = x Wᵀ + b ∘ (d ∘ (x Aᵀ)) Bᵀ; A and B random, frozen and shared, d and b trained."""

    rank: int = option(
        256, at_least(1), help="length of d; A has rank rows, B rank columns"
    )
    targets: tuple[str, ...] = option(
        ("all-linear",),
        help="linear modules: globs, names or their last parts, 're:' regular expressions, 'all-linear'",
    )
    exclude: tuple[str, ...] = option(
        (), help="modules to skip even if `targets` matches them"
    )
    d_initial: float = option(
        0.1, above(0), help="value of every entry of d at the start; b starts at zero"
    )
    projection_seed: int = option(
        0, at_least(0), help="of A and B; phases with the same seed share them"
    )

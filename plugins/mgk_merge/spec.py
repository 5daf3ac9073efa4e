"""The keys of the merge rule ``exact``."""

from __future__ import annotations

from attrs import frozen

from mgk_core.contract.specs import Spec, at_least, one_of, option


@frozen(kw_only=True)
class MergeSpec(Spec):
    """W ← round(W + residual + ΔW), summed in fp32, one rounding; the rest stays as residual."""

    residual: bool = option(
        True,
        help="for bf16 and fp16 weights: carry what rounding dropped into the next merge",
    )
    residual_dtype: str = option(
        "fp32", one_of("fp32", "bf16"), help="how the residual is kept"
    )
    chunk_rows: int = option(
        0,
        at_least(0),
        help="rows of a weight in work at once; 0: as many as fit a CPU's cache",
    )

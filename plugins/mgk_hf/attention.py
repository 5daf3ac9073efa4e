"""An attention implementation for transformers that knows packed sequences (see `layout`).

Registered under `NAME`. With a `Layout` among the keyword arguments it attends sequence by
sequence; without one (``generate``, the model called by hand) it is transformers' own sdpa.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn

from mgk_hf.cpu.lean import kept_whole
from mgk_hf.layout import Layout

NAME = "mgk_segments"
ARGUMENT = "mgk_layout"

_masks_wanted: ContextVar[bool] = ContextVar("mgk_hf_masks_wanted", default=True)


@contextmanager
def without_masks() -> Iterator[None]:
    """Keep transformers from building (T, T) masks that nobody reads."""
    token = _masks_wanted.set(False)
    try:
        yield
    finally:
        _masks_wanted.reset(token)


def register() -> None:
    """Make the implementation known to transformers. Harmless when repeated."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, _mask)


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    if not _masks_wanted.get():
        return None
    from transformers.masking_utils import sdpa_mask

    made: Tensor | None = sdpa_mask(*args, **kwargs)
    return made


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend. query: (B, H, T, D)   key, value: (B, H/groups, T, D)   returns (B, T, H, D), None."""
    layout: Layout | None = kwargs.pop(ARGUMENT, None)
    if layout is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        plain: tuple[Tensor, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, **kwargs
        )
        return plain
    batch, _, length, _ = query.shape
    mask = layout.mask(kwargs.get("sliding_window"))
    q, k, v = (_by_sequence(t, layout) for t in (query, key, value))
    with kept_whole():
        out = nn.functional.scaled_dot_product_attention(
            q,
            *_grouped(q, k, v),
            attn_mask=mask,
            is_causal=mask is None,
            dropout_p=kwargs.get("dropout", 0.0),
            scale=kwargs.get("scaling"),
        )  # (S, H, L, D)
    out = out.transpose(1, 2)
    if not layout.plain:
        width = out.shape[2] * out.shape[3]
        out = layout.to_batch(out.reshape(-1, width)).view(
            batch, length, *out.shape[2:]
        )
    return out, None


def _by_sequence(x: Tensor, layout: Layout) -> Tensor:
    """(B, H, T, D) → (S, H, L, D)."""
    if layout.plain:
        return x
    _, heads, _, depth = x.shape
    flat = x.transpose(1, 2).reshape(-1, heads * depth)  # (N, H·D)
    return (
        layout.to_sequences(flat).view(*layout.rows.shape, heads, depth).transpose(1, 2)
    )


def _grouped(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Show each key and value head to its group of query heads, by a view where it is one head."""
    groups = q.shape[1] // k.shape[1]
    if groups == 1:
        return k, v
    if k.shape[1] == 1:
        return k.expand_as(q), v.expand(-1, groups, -1, -1)
    return torch.repeat_interleave(k, groups, 1), torch.repeat_interleave(v, groups, 1)

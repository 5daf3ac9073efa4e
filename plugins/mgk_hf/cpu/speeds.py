"""How fast a CPU is at what a base's step is made of, as `mgk doctor` reports it: measured once per CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from mgk_core.contract.progress import activity
from mgk_core.model.speeds import fastest, measured, using
from mgk_hf.batch import pack, pad
from mgk_hf.cpu.screen import Screen, largest_activation
from mgk_hf.head import Table, head_pass
from mgk_hf.layout import layout_of
from mgk_hf.precision import best_compute

WIDTH, INNER = 640, 2048
"""Of the products: a feed-forward layer of Gemma 3 270M."""

POSITIONS = 64
VOCABULARY = 8192
LENGTHS = (12, 14, 16, 18, 20, 22, 26, 64)
"""Tokens of the sequences that are packed: short answers, and one long one."""


def speeds() -> Mapping[str, str]:
    """Return what was measured → its figures in words."""
    with activity("measuring this CPU"), using(1):
        products = measured("hf-products", lambda: dict(_products()))
        head = measured("hf-head", lambda: dict(_head()))
        packing = measured("hf-packing", lambda: dict(_packing()))
    each = ", ".join(f"{name} {rate / 1e9:.0f}" for name, rate in products.items())
    right = largest_activation()
    used = "exact in fp32"
    if right is not None:
        gain = head["exact"] / head["screened"]
        used = f"screened in int8 ({right.bit_length() + 1}-bit activations, {gain:.1f} times as fast as exact)"
    return {
        "products": f"{each} GFLOP/s on one thread; linear layers use {best_compute(torch.device('cpu'))}",
        "head": f"of a large vocabulary: {used}",
        "packing": f"{packing['padded'] / packing['packed']:.1f} times as fast as padded rows on short sequences",
    }


def _products() -> Iterator[tuple[str, float]]:
    """Yield a kind of product → its operations per second."""
    operations = 2.0 * POSITIONS * WIDTH * INNER
    x, w = _normal(POSITIONS, WIDTH), _normal(INNER, WIDTH)
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        a, b = x.to(dtype), w.to(dtype)
        yield name, operations / fastest(lambda a=a, b=b: nn.functional.linear(a, b))  # type: ignore[misc]
    if largest_activation() is not None:
        screen = Screen.of(w, x.abs().amax(0))
        yield "int8", operations / fastest(lambda: list(screen.logits(x)))


@torch.no_grad()
def _head() -> Iterator[tuple[str, float]]:
    """Yield exact and screened → seconds of a vocabulary's losses and their gradient."""
    table = _normal(VOCABULARY, WIDTH).mul_(0.2)
    labels = torch.arange(POSITIONS) * 7 % VOCABULARY
    hidden = table[labels].mul(40 / WIDTH**0.5) + _normal(POSITIONS, WIDTH)
    ways: dict[str, Screen | None] = {"exact": None}
    if largest_activation() is not None:
        ways["screened"] = Screen.of(table, hidden.abs().amax(0))
    for name, screen in ways.items():
        made = Table(table, screen=screen)
        yield (
            name,
            fastest(
                lambda made=made: head_pass(hidden, made, labels, gradient=True)  # type: ignore[misc]
            ),
        )


@torch.no_grad()
def _packing() -> Iterator[tuple[str, float]]:
    """Yield packed and padded → seconds of a layer's products and attention over short sequences."""
    rows = [(tuple(range(n)), tuple(range(n))) for n in LENGTHS]
    inner, outer = _normal(INNER, WIDTH), _normal(WIDTH, INNER)
    for name, batch in (("packed", pack(rows)), ("padded", pad(rows, 0))):
        x = _normal(batch.input_ids.numel(), WIDTH)
        layout = layout_of(batch)

        def layer(x: Tensor = x, layout=layout) -> Tensor:  # type: ignore[no-untyped-def]  # noqa: ANN001
            hidden = nn.functional.linear(nn.functional.linear(x, inner), outer)
            q = layout.to_sequences(hidden).view(*layout.rows.shape, 4, -1)
            q = q.transpose(1, 2)
            seen = nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
            out: Tensor = layout.to_batch(seen.transpose(1, 2).reshape(-1, WIDTH))
            return out

        yield name, fastest(layer)


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))

"""Which layer first produced something that is not finite: by replaying one batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from mgk_core.bundle import Batch, Bundle


@torch.no_grad()
def first_bad_layer(bundle: Bundle, batch: Batch) -> str:
    """Return a sentence that names the first module with a non-finite output on ``batch``."""
    found: list[str] = []

    def watch(name: str) -> Any:
        def hook(_: nn.Module, args: Any, output: Any) -> None:
            if not found and not _finite(output):
                found.append(name)

        return hook

    handles = [m.register_forward_hook(watch(n)) for n, m in bundle.model.named_modules() if not any(m.children())]
    try:
        total, _ = bundle.loss(batch)
    finally:
        for handle in handles:
            handle.remove()
    if found:
        return f"on replay the first layer with a non-finite output is {found[0]!r}"
    if not bool(torch.isfinite(total)):
        return "on replay every layer is finite and the loss is not"
    return "on replay the forward pass is finite, so the gradient was not"


def _finite(output: Any) -> bool:
    if isinstance(output, Tensor):
        return not output.is_floating_point() or bool(torch.isfinite(output).all())
    if isinstance(output, (tuple, list)):
        return all(_finite(o) for o in output)
    return True

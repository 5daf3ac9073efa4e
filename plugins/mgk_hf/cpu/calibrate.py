"""Make the screen of a base's vocabulary: from a fixed text, so that every run makes the same."""

from __future__ import annotations

from typing import Any

import torch
from attrs import evolve
from torch import Tensor

from mgk_core.contract.errors import InputError
from mgk_hf.batch import TokenBatch, pack
from mgk_hf.cpu.screen import Screen, supported
from mgk_hf.network import Network

TEXT = (
    "당뇨병은 혈당이 높은 상태가 오래 계속되는 질환이다.\n",
    "The heart pumps blood through the body, and the lungs bring in oxygen.\n",
    "1. A) 급성 심근경색증 = acute myocardial infarction (2024)\n",
)
"""Shows how large each dimension of the hidden states is; its content does not matter."""


def with_screen(network: Network, tokenizer: Any, head: str) -> Network:
    """Return the network with a screened head where that is asked for, or pays (``auto``).

    :raises InputError: ``screened`` was asked for and cannot work here
    """
    reason = _obstacle(network)
    if head == "screened" and reason:
        raise InputError(
            f"base.head = 'screened': {reason}; expected 'auto' or 'exact'"
        )
    weight: Any = getattr(network.head.module, "weight", None)
    if head == "exact" or reason or (head == "auto" and not supported(weight)):
        return network
    batch = pack([(ids := tuple(tokenizer(text).input_ids), ids) for text in TEXT])
    return evolve(
        network,
        head=evolve(
            network.head, screen=Screen.of(weight.detach(), _sizes(network, batch))
        ),
    )


def _obstacle(network: Network) -> str:
    head = network.head
    if not head.fast:
        return "the head is quantized or of a kind of its own"
    if head.module.weight.device.type != "cpu":
        return "it is for CPUs only"
    if not network.packs:
        return "the model cannot be packed"
    return (
        "logits are biased or capped"
        if head.softcap or getattr(head.module, "bias", None) is not None
        else ""
    )


@torch.no_grad()
def _sizes(network: Network, batch: TokenBatch) -> Tensor:
    return network(batch).abs().amax(0)

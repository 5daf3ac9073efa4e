"""The reference network as a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import define
from torch import Tensor, nn
from torch.nn import functional

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.bundle import GradientFn, OptionScores
from mgk_core.contract.errors import InputError
from mgk_textmodel.gradients import gradient_function
from mgk_textmodel.network import ReferenceNetwork, save
from mgk_textmodel.pairs import Pairs


@define(eq=False)
class ReferenceBundle:
    """The network and its loss: squared error, summed over the outputs and over the batch."""

    model: nn.Module
    device: torch.device
    tokenizer: Any = None

    @property
    def network(self) -> ReferenceNetwork:
        """The model, by its own type."""
        assert isinstance(self.model, ReferenceNetwork)  # noqa: S101 - made by this plugin
        return self.model

    def loss(self, batch: Pairs) -> tuple[Tensor, Tensor]:
        """Return (squared error summed over all outputs and examples, number of examples)."""
        return functional.mse_loss(
            self.model(batch.inputs), batch.targets, reduction="sum"
        ), batch.count

    def losses(self, items: Sequence[Pairs]) -> tuple[Tensor, Tensor]:
        """Return each item's `loss`, from one forward pass: two tensors, (items,)."""
        whole = self.pack(items)
        errors = (
            (self.model(whole.inputs) - whole.targets).square().sum(1)
        )  # (examples,)
        sums = torch.stack(
            [part.sum() for part in torch.split(errors, [len(i.inputs) for i in items])]
        )
        return sums, torch.stack([i.count for i in items])

    def outputs(self, batch: Pairs, positions: Tensor | None = None) -> Tensor:
        """Return the outputs of the examples ``positions`` (all where None): (positions, out)."""
        inputs = batch.inputs if positions is None else batch.inputs[positions]
        outputs: Tensor = self.model(inputs)
        return outputs

    def score(self, items: Sequence[Any]) -> list[OptionScores]:
        """Refuse: the network gives numbers, no likelihoods."""
        raise InputError(
            f"the reference network cannot score the options of {len(items)} items: it has no tokens;"
            " use the metric 'squared_error', or a base that is a language model"
        )

    def valid(self, batch: Pairs) -> Tensor | None:
        """Return None: there is no padding."""
        return None

    def unpack(self, batch: Pairs) -> list[Pairs]:
        """Return a batch's examples as batches of one."""
        rows = zip(
            torch.split(batch.inputs, 1), torch.split(batch.targets, 1), strict=True
        )
        return [Pairs.of(x, y) for x, y in rows]

    def pack(self, examples: Sequence[Pairs]) -> Pairs:
        """Return one batch of the examples, in order."""
        return Pairs.of(
            torch.cat([e.inputs for e in examples]),
            torch.cat([e.targets for e in examples]),
        )

    def gradient_function(
        self, adapter: Adapter, parameters: Sequence[Tensor]
    ) -> GradientFn | None:
        """Return the hand-derived gradients, for plain LoRA on the network's layers."""
        return gradient_function(self.network, adapter, parameters)

    def save(self, directory: Path) -> None:
        """Write ``model.safetensors`` and ``config.json``; `mgk_textmodel.network.load` reads them."""
        save(self.network, directory)

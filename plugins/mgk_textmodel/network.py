"""The reference network: linear layers with an activation between them.

Its layers are named ``layer1``, ``layer2``, … so that an adapter's globs can pick them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from mgk_core.contract.errors import InputError
from mgk_textmodel.specs import ReferenceSpec

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "relu": functional.relu,
    "tanh": torch.tanh,
}
_FORMAT = "mgk-reference-network"


class ReferenceNetwork(nn.Module):
    """layer1 → activation → layer2 → … → last layer. (batch, widths[0]) → (batch, widths[-1])."""

    def __init__(
        self, widths: tuple[int, ...] = (64, 128, 128, 32), activation: str = "gelu"
    ) -> None:
        super().__init__()
        self.widths, self.activation = tuple(widths), activation
        for i, (inside, outside) in enumerate(pairwise(widths), start=1):
            self.add_module(f"layer{i}", nn.Linear(inside, outside))

    @property
    def layers(self) -> list[nn.Linear]:
        """The linear layers, from input to output."""
        return [
            layer
            for name, layer in self._modules.items()
            if isinstance(layer, nn.Linear) and name
        ]

    def forward(self, inputs: Tensor) -> Tensor:
        """Run the layers. (batch, in) → (batch, out)."""
        act = ACTIVATIONS[self.activation]
        first, *rest = self._modules.values()
        hidden: Tensor = first(inputs)  # type: ignore[misc]
        for layer in rest:
            hidden = layer(act(hidden))  # type: ignore[misc]
        return hidden


def build(spec: ReferenceSpec) -> ReferenceNetwork:
    """Make the network of a spec: weights init_std · N(0, 1), biases zero, on the CPU."""
    network = ReferenceNetwork(spec.widths, spec.activation)
    generator = torch.Generator().manual_seed(spec.seed)
    with torch.no_grad():
        for layer in network.layers:
            layer.weight.copy_(
                spec.init_std * torch.randn(layer.weight.shape, generator=generator)
            )
            layer.bias.zero_()
    return network


def save(network: ReferenceNetwork, directory: Path) -> None:
    """Write ``model.safetensors`` and ``config.json``; `load` reads them."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.detach().cpu().contiguous()
        for name, tensor in network.state_dict().items()
    }
    save_file(tensors, directory / "model.safetensors", metadata={"format": _FORMAT})
    config = {
        "format": _FORMAT,
        "widths": list(network.widths),
        "activation": network.activation,
    }
    (directory / "config.json").write_text(
        json.dumps(config, indent=2) + "\n", encoding="utf-8"
    )


def load(directory: Path) -> ReferenceNetwork:
    """Read a network that `save` wrote; `InputError` names what is missing or foreign."""
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path}: cannot be read as the configuration of a reference network: {error}"
        ) from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise InputError(
            f'{path}: expected "format": "{_FORMAT}"; this directory was written by another tool'
        )
    network = ReferenceNetwork(tuple(config["widths"]), config["activation"])
    weights = directory / "model.safetensors"
    if not weights.is_file():
        raise InputError(
            f"{weights}: no such file; a saved reference network has config.json and model.safetensors"
        )
    network.load_state_dict(load_file(weights))
    return network.requires_grad_(requires_grad=False).eval()

"""The adapter: all parts of one LoRA on one model, and what it does to each weight."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mgk_core.contract.adapter import (
    Factors,
    Identity,
    ModelState,
    Target,
    load_in_place,
    retie,
)
from mgk_core.contract.errors import InputError
from mgk_core.model.inject import switched_off, take
from mgk_lora.kinds import Candidate
from mgk_lora.pair import Pair
from mgk_lora.parts import LoraPart, WeightPart
from mgk_lora.spec import LoraSpec

AnyPart = LoraPart | WeightPart

OWN = "state.safetensors"
"""As the core names an adapter's state, so that a run keeps its numbers in one file."""


class LoraAdapter:
    """LoRA, rsLoRA, PiSSA or DoRA on a model; made by `mgk_lora.attach`.

    Keys of ``state_dict``: the weight's name in the base, a slash, and ``a``, ``b``, ``a0``,
    ``b0``, ``bias`` or ``magnitude``.
    """

    def __init__(
        self,
        name: str,
        spec: LoraSpec,
        chosen: Sequence[Candidate],
        *,
        placed: list[tuple[nn.Module, AnyPart]],
        pairs: Mapping[str, tuple[Pair, Target]],
        biases: Mapping[str, tuple[Pair, Target]],
        untied: ModelState | None,
        identity: Identity,
        module_names: tuple[str, ...],
    ) -> None:
        """:param module_names: of all the model's modules; pairs: weight name → its factors and its location; biases: the same by bias name."""
        self.name, self.spec, self.chosen = name, spec, tuple(chosen)
        self.module_names: tuple[str, ...] = module_names
        self._placed, self._pairs, self._biases, self._untied = (
            placed,
            dict(pairs),
            dict(biases),
            untied,
        )
        self.identity: Identity = identity
        self.notes: tuple[str, ...] = ()
        # A norm over the first stored dimension (DoRA on a transposed weight) needs all rows at once.
        self.row_separable = all(
            pair.magnitude is None or 0 not in pair.layout.norm_dims
            for pair, _ in self._pairs.values()
        )

    def parameters(self) -> list[nn.Parameter]:
        """Return A, B and what else is trained, in the order of the model's modules."""
        return [p for pair, _ in self._pairs.values() for p in pair.parameters()]

    def targets(self) -> dict[str, Target]:
        """Return weight (and bias) name in the base → its location."""
        return {
            name: target
            for name, (_, target) in (*self._pairs.items(), *self._biases.items())
        }

    def pair(self, name: str) -> Pair:
        """Return the trainable factors of one weight."""
        return self._pairs[name][0]

    def factors(self, name: str) -> Factors | None:
        """Return the live factors of a weight; None for biases and DoRA."""
        if name not in self._pairs or self.pair(name).magnitude is not None:
            return None
        return self.pair(name).factors

    def merged_weight(
        self, name: str, weight: Tensor, rows: slice | None = None
    ) -> Tensor:
        """Return what ``weight`` (or a block ``rows`` of it) becomes; see `mgk_core.contract.adapter.Adapter`."""
        if name in self._biases:
            pair = self._biases[name][0]
            assert pair.bias is not None  # noqa: S101 - it is why the bias is a target
            delta = pair.bias.detach().to(weight.dtype) * pair.scale
            return weight + (delta if rows is None else delta[rows])
        return self.pair(name).merged(weight, rows)

    def rescale(self, weight: float) -> None:
        """Multiply every delta by ``weight``.

        :raises InputError: DoRA, whose weight is not a base plus a delta
        """
        if any(pair.magnitude is not None for pair, _ in self._pairs.values()):
            raise InputError(
                f"adapter {self.name!r}: DoRA's weights are not a base plus a delta, so weight must be 1"
            )
        for pair, _ in self._pairs.values():
            pair.scale *= weight

    def disabled(self) -> AbstractContextManager[None]:
        """Run without this adapter inside the block."""
        return switched_off([part for _, part in self._placed])

    def detach(self) -> None:
        """Take every part off; weights untied at attach are tied again unless they differ by now."""
        for module, _ in self._placed:
            take(module, self.name)
        if self._untied is not None:
            retie(self._untied)

    def state_dict(self) -> dict[str, Tensor]:
        """Return all factors by ``weight/tensor``; not copies."""
        return {
            f"{name}/{part}": tensor.detach()
            for name, (pair, _) in self._pairs.items()
            for part, tensor in pair.tensors().items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Load ``state`` in place; an `InputError` names missing, unknown or misshapen keys."""
        load_in_place(self.name, self.state_dict(), state)

    def save(self, directory: Path) -> None:
        """Write PEFT's format where PEFT has the type, else one safetensors file of `state_dict`."""
        from mgk_lora.peft_format import save_peft, why_not

        if why_not(self) is None:
            save_peft(self, directory)
        else:
            save_file(
                {k: v.contiguous().cpu().clone() for k, v in self.state_dict().items()},
                directory / OWN,
            )

    def load(self, directory: Path) -> None:
        """Load what `save` wrote, bit for bit."""
        from mgk_lora.peft_format import load_into

        if (directory / OWN).is_file():
            self.load_state_dict(load_file(directory / OWN))
        else:
            load_into(self, directory)

"""Log-likelihoods under the reference: the base of the phase, its adapter switched off.

They are computed once, before the first step, and kept in the phase's folder, so that a resumed
phase reads the same bits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from attrs import define, field
from safetensors.torch import save_file
from torch import Tensor, nn

from mgk_core.contract.bundle import LanguageBundle, PredictsTokens, Tokens
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import StoreError
from mgk_core.contract.files import read_metadata, read_tensors
from mgk_core.contract.progress import counting

TOKENS = 2048
"""Tokens of the examples that are computed together."""


@define(eq=False)
class Reference:
    """Summed log-likelihoods of examples under the base. name: of the file that keeps them."""

    ctx: PhaseContext
    name: str
    examples: Sequence[Tokens] = field(repr=False)
    _table: Tensor | None = None

    def of(self, indices: Sequence[int]) -> Tensor:
        """Return the log-likelihoods of some examples, (n,) fp32 on the device."""
        if self._table is not None:
            return self._table[list(indices)]
        return self._compute([self.examples[i] for i in indices])  # `mgk plan`

    def prepare(self) -> None:
        """Read the table, or compute and keep it."""
        if not self.examples:
            return
        groups = list(self._groups())
        path = self.ctx.files / f"{self.name}.safetensors"
        found = self._read(groups)
        if found is None:
            with counting(len(self.examples), "reference answers") as advance:
                parts = []
                for group in groups:
                    parts.append(self._compute(group))
                    advance(len(group))
            found = torch.cat(parts)
            temporary = path.with_suffix(".tmp")
            save_file({"logprobs": found.cpu()}, temporary, {"digest": self._digest()})
            temporary.replace(path)
        self._table = found

    def _read(self, groups: Sequence[Sequence[Tokens]]) -> Tensor | None:
        """Return the table that is kept; None where there is none of these examples and this base.

        The first group is computed again: another base gives other bits.
        """
        path = self.ctx.files / f"{self.name}.safetensors"
        try:
            if read_metadata(path).get("digest") != self._digest():
                return None
            kept = read_tensors(path)["logprobs"].to(self.ctx.device)
        except (StoreError, KeyError):
            return None
        first = self._compute(groups[0])
        same = len(kept) == len(self.examples)
        return kept if same and torch.equal(kept[: len(first)], first) else None

    def _groups(self) -> Iterator[list[Tokens]]:
        """Yield the examples in order, as many together as `TOKENS` allows."""
        group: list[Tokens] = []
        size = 0
        for example in self.examples:
            if group and size + len(example.ids) > TOKENS:
                yield group
                group, size = [], 0
            group.append(example)
            size += len(example.ids)
        if group:
            yield group

    def _compute(self, examples: Sequence[Tokens]) -> Tensor:
        adapter = self.ctx.adapter
        assert adapter is not None  # noqa: S101 - objectives are made with it attached
        bundle = cast("LanguageBundle", self.ctx.bundle)
        predicts = cast("PredictsTokens", bundle)
        with torch.no_grad(), evaluating(self.ctx.model), adapter.disabled():
            found = predicts.predictions(bundle.pack(examples))
            return summed(found.logprobs(), found.example, len(examples))

    def _digest(self) -> str:
        state = hashlib.blake2b(digest_size=16)
        for example in self.examples:
            state.update(json.dumps([example.ids, example.labels]).encode())
        return state.hexdigest()


def summed(values: Tensor, example: Tensor, examples: int) -> Tensor:
    """Return the sum of each example's values, (examples,). values, example: (N,)."""
    return values.new_zeros(examples).index_add(0, example, values)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block, and leave each module as it was."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True

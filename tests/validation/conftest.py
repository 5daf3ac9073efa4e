"""A small but real language model (a table of bigrams), and phases made from a real configuration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mgk_core.config.resolve import load_tree, resolve
from mgk_core.contract.bundle import Choice, OptionScores, Probe, Tokens
from mgk_core.contract.context import PhaseContext
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_phases.textmodel import PIPELINE


class Bigrams:
    """p(next | last) = softmax of a table's row; the first token is given."""

    tokenizer = None
    device = torch.device("cpu")

    def __init__(self, vocabulary: int = 7) -> None:
        self.model = nn.Embedding(vocabulary, vocabulary).requires_grad_(
            requires_grad=False
        )
        self.asked = 0
        with torch.no_grad():
            self.model.weight.copy_(
                torch.randn(
                    vocabulary, vocabulary, generator=torch.Generator().manual_seed(0)
                )
            )

    def pack(self, examples: Sequence[Tokens]) -> list[Tokens]:
        """Keep examples apart: there is nothing to gain here."""
        return list(examples)

    def loss(self, batch: list[Tokens]) -> tuple[Tensor, Tensor]:
        """Summed NLL of the labelled tokens, and their number."""
        total, count = torch.zeros(()), 0
        for example in batch:
            for last, label in zip(example.ids, example.labels[1:], strict=False):
                if label >= 0:
                    total = total - self.logprob(last, label)
                    count += 1
        return total, torch.tensor(count)

    def logprob(self, last: int, token: int) -> Tensor:
        """Log-likelihood of one token."""
        return torch.log_softmax(self.model.weight[last], 0)[token]

    def score(self, items: Sequence[Choice]) -> list[OptionScores]:
        """Score each option behind its prompt."""
        self.asked += 1
        return [self._score(item) for item in items]

    def _score(self, item: Choice) -> OptionScores:
        totals = []
        for option in item.options:
            path = (item.prompt[-1], *option)
            totals.append(
                float(
                    sum(self.logprob(a, b) for a, b in zip(path, option, strict=False))
                )
            )
        return OptionScores(
            tuple(totals),
            tuple(map(len, item.options)),
            item.nbytes or tuple(map(len, item.options)),
        )

    def outputs(self, batch: list[Tokens], positions: Tensor | None = None) -> Tensor:
        """Return the table's rows of the labelled tokens."""
        rows = [
            last
            for e in batch
            for last, label in zip(e.ids, e.labels[1:], strict=False)
            if label >= 0
        ]
        found: Tensor = self.model.weight[rows]
        return found if positions is None else found[positions]

    def valid(self, batch: list[Tokens]) -> Tensor | None:  # the protocol's signature
        """Tell that there is no padding."""
        return None

    def save(self, directory: Path) -> None:
        """Write the table."""
        save_file(self.model.state_dict(), directory / "model.safetensors")

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
    ) -> list[list[int]]:
        """Continue greedily."""
        best = self.model.weight.argmax(1).tolist()
        found = []
        for prompt in prompts:
            path = [prompt[-1]]
            while len(path) <= max_new_tokens and best[path[-1]] not in stop:
                path.append(best[path[-1]])
            found.append(path[1:])
        return found


@pytest.fixture
def bigrams() -> Bigrams:
    """A fresh table."""
    return Bigrams()


@pytest.fixture(scope="session")
def hooks() -> Hooks:
    """All installed plugins."""
    return Hooks(load_plugins())


@pytest.fixture
def phase_of(hooks: Hooks, tmp_path: Path) -> Callable[..., PhaseContext]:
    """Return a maker of contexts: phase ``index`` of the reference pipeline, with gates and recoveries as given."""

    def make(
        index: int = 1,
        probes: Sequence[Probe] = (),
        run: dict[str, Any] | None = None,
        **slots: Any,
    ) -> PhaseContext:
        name = PIPELINE.phases[index].name
        overrides = {
            "defaults.gate.min-gain": False,
            f"phases.{name}": slots,
            "run": run or {},
        }
        config = resolve(
            load_tree(PIPELINE, overrides=overrides), hooks.plugins.registry
        ).config
        return PhaseContext(
            config=config,
            phase=config.phases[index],
            index=index,
            bundle=Bigrams(),  # type: ignore[arg-type]
            device=torch.device("cpu"),
            directory=tmp_path,
            probes=tuple(probes),
        )

    return make

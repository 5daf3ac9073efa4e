"""The laws of evaluators (``mgk_evaluate``), and the small language model used to test them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from attrs import frozen
from safetensors.torch import save_file
from torch import Tensor, nn

from mgk_core.contract.bundle import Bundle, Choice, OptionScores, Probe, Score, Tokens
from mgk_core.contract.conversation import Conversation
from mgk_core.testing.laws import Law, LawResult, NotApplicable, hold_all, law, require
from mgk_core.testing.plain_conversation import WORDS, PlainConversation


class Table(nn.Module):
    """The logits of what follows each token, with dropout before them."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.table, self.dropout = nn.Embedding(WORDS, WORDS), nn.Dropout(p)

    def forward(self, ids: Tensor) -> Tensor:
        """ids: (n,)   returns: (n, words)."""
        found: Tensor = self.dropout(self.table(ids))
        return found


class BigramBundle:
    """p(next | last) = softmax of a table's row; a real language model of 49 numbers, with dropout."""

    tokenizer = None
    device = torch.device("cpu")

    conversation: Conversation = PlainConversation()

    def __init__(self, p: float = 0.5) -> None:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            self.model: nn.Module = Table(p).requires_grad_(requires_grad=False).eval()
            self.model.get_parameter("table.weight").copy_(
                torch.randn(WORDS, WORDS, generator=torch.Generator().manual_seed(0))
            )

    def pack(self, examples: Sequence[Tokens]) -> list[Tokens]:
        """Keep examples apart."""
        return list(examples)

    def _logprobs(self, last: Sequence[int], following: Sequence[int]) -> Tensor:
        logits = self.model(torch.tensor(last))
        found: Tensor = torch.log_softmax(logits, -1)[
            torch.arange(len(last)), torch.tensor(following)
        ]
        return found

    def loss(self, batch: list[Tokens]) -> tuple[Tensor, Tensor]:
        """Return the summed NLL of the labelled tokens behind another one, and their number."""
        pairs = [
            (a, b)
            for e in batch
            for a, b in zip(e.ids, e.labels[1:], strict=False)
            if b >= 0
        ]
        last, following = zip(*pairs, strict=True)
        return -self._logprobs(last, following).sum(), torch.tensor(len(pairs))

    @torch.no_grad()
    def score(self, items: Sequence[Choice]) -> list[OptionScores]:
        """Score each option behind its prompt."""
        return [self._score(item) for item in items]

    def _score(self, item: Choice) -> OptionScores:
        paths = [((item.prompt[-1], *option)[:-1], option) for option in item.options]
        lengths = tuple(map(len, item.options))
        totals = tuple(
            float(self._logprobs(last, option).sum()) for last, option in paths
        )
        return OptionScores(totals, lengths, item.nbytes or lengths)

    def outputs(self, batch: list[Tokens], positions: Tensor | None = None) -> Tensor:
        """Return the logits behind every token."""
        found: Tensor = self.model(torch.tensor([t for e in batch for t in e.ids]))
        return found if positions is None else found[positions]

    def valid(self, batch: list[Tokens]) -> Tensor | None:
        """Return None: there is no padding."""
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
        return [self._continued(prompt[-1], max_new_tokens, stop) for prompt in prompts]

    def _continued(self, last: int, count: int, stop: Sequence[int]) -> list[int]:
        found: list[int] = []
        while len(found) < count:
            last = int(self.model(torch.tensor([last])).argmax())
            if last in stop:
                break
            found.append(last)
        return found


Evaluate = Callable[[Bundle, Probe], Score | None]


@frozen(eq=False)
class Evaluator:
    """An evaluator under test. bundle: dropout rate → the same model each time; probe: what is measured."""

    evaluate: Evaluate
    probe: Probe
    bundle: Callable[[float], Bundle] = BigramBundle

    def score(self, p: float = 0.5, bundle: Bundle | None = None) -> Score:
        """Measure the probe."""
        found = self.evaluate(bundle or self.bundle(p), self.probe)
        if found is None:
            raise NotApplicable(
                f"it does not answer for the metric {self.probe.metric!r}"
            )
        return found


@law("dropout is off")
def dropout_off(evaluator: Evaluator) -> None:
    """A model in evaluation mode is measured without dropout, and stays in that mode."""
    bundle = evaluator.bundle(0.5)
    found, plain = evaluator.score(bundle=bundle), evaluator.score(p=0.0)
    require(not bundle.model.training, "the model was left in training mode")
    require(
        found.per_item == plain.per_item,
        f"with dropout {found.value!r}, without {plain.value!r}",
    )


@law("the same score twice")
def twice(evaluator: Evaluator) -> None:
    """A second evaluation gives the same bits, draws no random number and changes no weight."""
    bundle = evaluator.bundle(0.5)
    weights = [p.detach().clone() for p in bundle.model.parameters()]
    state = torch.get_rng_state()
    one, two = evaluator.score(bundle=bundle), evaluator.score(bundle=bundle)
    require(
        one.per_item == two.per_item and repr(one.value) == repr(two.value),
        f"first {one.value!r}, then {two.value!r}",
    )
    require(
        torch.equal(torch.get_rng_state(), state),
        "it drew from torch's global generator",
    )
    same = all(
        torch.equal(a, b)
        for a, b in zip(weights, bundle.model.parameters(), strict=True)
    )
    require(same, "it changed the model's weights")


@law("n and stderr fit the items")
def consistent(evaluator: Evaluator) -> None:
    """n items, their mean (or its exponential) and its standard error; direction, metric and name are the probe's."""
    probe, found = evaluator.probe, evaluator.score()
    items = found.per_item
    wanted = (probe.name, probe.metric, probe.higher_is_better, len(probe.items))
    require(
        (found.probe, found.metric, found.higher_is_better, found.n) == wanted,
        f"{found} does not fit {wanted}",
    )
    require(len(items) == found.n, f"n is {found.n}, and there are {len(items)} values")
    mean = math.fsum(items) / len(items)
    spread = math.sqrt(
        math.fsum((x - mean) ** 2 for x in items) / (len(items) - 1) / len(items)
    )
    for value, stderr in (
        (mean, spread),
        (math.exp(min(mean, 700.0)), math.exp(min(mean, 700.0)) * spread),
    ):
        if math.isclose(found.value, value, rel_tol=1e-9, abs_tol=1e-12):
            ok = math.isclose(found.stderr, stderr, rel_tol=1e-6, abs_tol=1e-12)
            require(
                ok,
                f"the standard error is {found.stderr:.6g}; computed from the items it is {stderr:.6g}",
            )
            return
    require(
        ok=False,
        detail=f"the value is {found.value:.6g}; the mean of the items is {mean:.6g}",
    )


LAWS: tuple[Law[Evaluator], ...] = (dropout_off, twice, consistent)


def standard_probes() -> list[Probe]:
    """Return probes of the usual metrics over the bigram model; all items are of one length."""
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, WORDS, (count,), generator=generator).tolist())

    texts = tuple(Tokens(t, t) for t in (ids(6) for _ in range(9)))
    questions = tuple(Choice(ids(3), (ids(2), ids(2), ids(2)), i % 3) for i in range(9))
    return [
        Probe("kit-text", "base", "perplexity", texts, higher_is_better=False),
        Probe("kit-error", "base", "squared_error", texts, higher_is_better=False),
        Probe(
            "kit-options", "base", "option_logprob", questions, higher_is_better=True
        ),
        Probe(
            "kit-choices",
            "base",
            "option_accuracy",
            questions,
            higher_is_better=True,
            chance=1 / 3,
        ),
    ]


def check_evaluator(
    evaluate: Evaluate, probe: Probe, named: str = "evaluator"
) -> list[LawResult]:
    """Run the conformance tests on an evaluator, with a probe over `BigramBundle`."""
    return hold_all(LAWS, Evaluator(evaluate, probe), named)

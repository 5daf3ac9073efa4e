"""What a model plugin and a data plugin hand to the rest: bundle, training set, probes.

The core never looks inside a batch or an item: those are between the model plugin and the data
plugin. It needs only the three ways to ask a model something (``loss``, ``outputs``, ``score``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from attrs import field, frozen
from torch import Tensor, nn

from mgk_core.contract.adapter import Adapter, Vocabulary
from mgk_core.contract.conversation import Conversation, Message
from mgk_core.contract.errors import InputError
from mgk_core.contract.world import World

Batch = Any
"""One micro-batch, made by a `TrainSet`; opaque to the core. Tensors in it live on the device."""


@runtime_checkable
class Bundle(Protocol):
    """A model, its tokenizer, and the three questions that can be put to it."""

    model: nn.Module
    tokenizer: Any
    device: torch.device

    def loss(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return (sum of the loss over what is to be learnt, count): two 0-dim fp32 tensors.

        The mean is ``sum / count``; gradient accumulation adds sums and divides once by the
        whole count, so that a step does not depend on how it was split.
        """

    def outputs(self, batch: Batch, positions: Tensor | None = None) -> Tensor:
        """Return raw outputs (logits, never probabilities), fp32, (positions, width).

        :param positions: flat indices of the positions wanted; None: a fixed, bounded choice
            of the batch's own (the labelled ones), so that full logits need not exist
        """

    def score(self, items: Sequence[Any]) -> list[OptionScores]:
        """Score each item's options by log-likelihood; no gradient, dropout off."""

    def valid(self, batch: Batch) -> Tensor | None:
        """Return a flat bool mask of the positions that are not padding; None: all are valid."""

    def save(self, directory: Path) -> None:
        """Write the model so that its own ecosystem loads it (safetensors and JSON only)."""


GradientFn = Callable[[Batch], tuple[Tensor, Tensor, Sequence[Tensor]]]
"""Micro-batch → (summed loss, count, gradients of the sum). The gradients may be overwritten by
the next call."""


@runtime_checkable
class OwnGradients(Protocol):
    """Optional: a bundle that knows a faster way to its gradients than autograd.

    A step compares the two on the phase's first examples and uses this one only where they agree.
    """

    def gradient_function(
        self, adapter: Adapter, parameters: Sequence[Tensor]
    ) -> GradientFn | None:
        """Return what computes the gradients of ``parameters``, in their order.

        None where this adapter, these parameters, or the model in its present state need autograd.
        """


@runtime_checkable
class Adaptable(Protocol):
    """Optional: a bundle whose model has parts that adapters leave alone, such as a vision tower."""

    adaptable: Sequence[str]
    """Names of the modules that adapters may change, with all that is inside them; empty: all."""


@runtime_checkable
class HasVocabulary(Protocol):
    """Optional: a bundle that knows its model's tokens, so that adapters can name rows of its table."""

    vocabulary: Vocabulary
    """The tokens; a deepcopy of the model shares it."""


@runtime_checkable
class ChecksItems(Protocol):
    """Optional: a bundle that knows before training what its model cannot read."""

    def check_items(self, items: Sequence[Any]) -> tuple[str, ...]:
        """Check training examples and probe items; return notes for the user.

        :raises InputError: a token without a row in the embedding, or more positions than there are
        """


@runtime_checkable
class HasCard(Protocol):
    """Optional: a bundle that knows its base's entry on the hub."""

    def card(self) -> Mapping[str, Any]:
        """Return the hub's metadata of a model derived from this base: licence, base_model, task."""


@runtime_checkable
class Shareable(Protocol):
    """Optional: a bundle whose base other libraries load, so that an adapter alone can be shared."""

    def adapter_keys(self) -> Mapping[str, Any]:
        """Return what names the base in PEFT's ``adapter_config.json``."""

    def complete_export(self, directory: Path) -> None:
        """Write what goes along with an adapter: tokenizer, licence.

        :raises InputError: the base that others load is not the one that the adapter needs
        """

    def exported_outputs(
        self, directory: Path, batches: Sequence[Batch]
    ) -> list[Tensor] | None:
        """Return `Bundle.outputs` of an exported adapter, loaded by other libraries alone.

        None where they are not installed, or where the base exists in this run only.
        """


@runtime_checkable
class LossPerItem(Protocol):
    """Optional: a bundle that computes the loss of many small batches in a single pass."""

    def losses(self, items: Sequence[Batch]) -> tuple[Tensor, Tensor]:
        """Return (summed loss, count) of each item as `Bundle.loss` would alone: two fp32 tensors, (items,)."""


@frozen
class Tokens:
    """One training example of a language model. labels: as ids, −100 where nothing is learnt.

    The label at i is what the model should predict at i (labels are not shifted). nbytes: UTF-8
    bytes of the text that is learnt, for likelihoods that compare across tokenizers.
    """

    ids: tuple[int, ...]
    labels: tuple[int, ...]
    nbytes: int = 0


PICTURE = "\ue002"
"""What a picture is in a message's text: a private-use character."""


@frozen
class Picture:
    """One picture: a file, or the bytes of one. digest: of the bytes, so that a change is noticed."""

    path: str
    data: bytes = field(default=b"", repr=False)
    digest: str = ""

    def read(self) -> bytes:
        """Return the picture's file as bytes."""
        return self.data or Path(self.path).read_bytes()


@frozen
class Pictured(Tokens):
    """One training example, or one prompt, that shows pictures; they are read when it is packed."""

    pictures: tuple[Picture, ...] = ()


@frozen
class Choice:
    """One item to score: a prompt and options that follow it.

    answer: index of the right one; −1 where none is, as of a single answer that is labelled bad.
    """

    prompt: tuple[int, ...]
    options: tuple[tuple[int, ...], ...]
    answer: int
    nbytes: tuple[int, ...] = ()
    group: str = ""


@runtime_checkable
class LanguageBundle(Bundle, Protocol):
    """What a bundle with a tokenizer also offers, so that data plugins need not know models."""

    def pack(self, examples: Sequence[Tokens]) -> Batch:
        """Make one micro-batch: examples behind each other, attention and positions apart."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
    ) -> list[list[int]]:
        """Continue each prompt with the most likely token each time.

        :param stop: tokens to stop at, beside those that end a turn
        :return: the new ids of each prompt, without the token that ended them
        """


@runtime_checkable
class Speaks(LanguageBundle, Protocol):
    """A language bundle that knows how its base is spoken to; text data and ``mgk ask`` need it."""

    conversation: Conversation


@runtime_checkable
class SeesPictures(Speaks, Protocol):
    """Optional promise of a language bundle: its chats may show pictures (the mark `PICTURE`)."""

    def see(
        self,
        chats: Sequence[Sequence[Message]],
        pictures: Sequence[Sequence[Picture]],
    ) -> list[list[Pictured]]:
        """Return each chat as training examples, as `Conversation.exchanges` does.

        :raises InputError: the base sees no pictures
        """

    def see_prompts(
        self,
        chats: Sequence[Sequence[Message]],
        pictures: Sequence[Sequence[Picture]],
    ) -> list[Pictured]:
        """Return prompts; `LanguageBundle.generate` takes them as they are."""


@runtime_checkable
class Unpacks(Protocol):
    """Optional promise of a bundle: its batches can be taken apart and put together again (replay).

    An example is `Tokens`, or an attrs class whose fields are tensors, so that it can be kept.
    """

    def unpack(self, batch: Batch) -> list[Any]:
        """Return a micro-batch's examples, in order; ``pack`` of them asks the same of the model."""

    def pack(self, examples: Sequence[Any]) -> Batch:
        """Make one micro-batch of such examples."""


def require_unpacks(bundle: Bundle, who: str) -> Unpacks:
    """Return the bundle as one whose batches can be taken apart.

    :param who: the method that needs it, for the message
    :raises InputError: the bundle has no ``unpack`` and ``pack``
    """
    if not isinstance(bundle, Unpacks):
        raise InputError(
            f"{who}: this base ({type(bundle).__name__}) cannot split its batches into examples;"
            " it needs the methods 'unpack' and 'pack' (mgk_core.contract.bundle.Unpacks)"
        )
    return bundle


@frozen
class OptionScores:
    """Log-likelihoods of one item's options, given its prompt.

    logprob: natural log, summed over an option's tokens. tokens, bytes: each option's length.
    """

    logprob: tuple[float, ...]
    tokens: tuple[int, ...]
    bytes: tuple[int, ...]


@runtime_checkable
class ScoresOptions(Protocol):
    """Optional promise of a language bundle: scores of options that carry a gradient."""

    def option_logprobs(self, items: Sequence[Choice]) -> Tensor:
        """Return the mean log-likelihood per token of every option, all items' in order, (options,)."""


@runtime_checkable
class Predictions(Protocol):
    """What a model predicts where a batch has labels: N positions, example by example.

    tokens: (N,) the labels themselves. example: (N,) which example of the batch each belongs to.
    """

    tokens: Tensor
    example: Tensor

    def logprobs(self) -> Tensor:
        """Return the log-likelihood of each label, (N,) fp32, with its gradient."""

    def logits(self, part: slice) -> Tensor:
        """Return the logits at some of the positions, (n, V) fp32, with their gradient."""


@runtime_checkable
class PredictsTokens(Protocol):
    """Optional promise of a language bundle: what losses of their own are computed from."""

    def predictions(self, batch: Batch, *, embedding_noise: float = 0.0) -> Predictions:
        """Run the model over a packed batch.

        :param embedding_noise: NEFTune's α (Jain et al. 2023, arXiv 2310.05914): uniform noise up to
            α / √(L · D) on each embedding of an example of L tokens, while the model is training
        """


@frozen
class PreferencePair:
    """One prompt with two answers, both with their ends; of each only the answer is learned."""

    chosen: Tokens
    rejected: Tokens


@frozen
class LabelledAnswer:
    """One prompt with one answer that is wanted or not; only the answer has labels."""

    answer: Tokens
    desirable: bool


@runtime_checkable
class HasPairs(Protocol):
    """Optional promise of a training set: each row is a pair of a chosen and a rejected answer."""

    pairs: Sequence[PreferencePair]


@runtime_checkable
class HasLabelledAnswers(Protocol):
    """Optional promise of a training set: each row is an answer labelled as wanted or not."""

    answers: Sequence[LabelledAnswer]


@runtime_checkable
class HasWeights(Protocol):
    """Optional promise of a training set: how much each token counts in the likelihood.

    weights: for each row, one number for each of its labels, in the order of `Predictions.tokens`;
    the label of an example's first token has none, since nothing predicts it.
    """

    weights: Sequence[Sequence[float]]


@runtime_checkable
class ComputesTogether(Protocol):
    """Optional promise of a bundle that scores many items at once: which of them take most room."""

    def together(self, items: Sequence[Any]) -> Sequence[Any]:
        """Return the largest group of a probe's items that is computed in one go."""


@runtime_checkable
class SharesOut(Protocol):
    """Optional: a bundle whose ``score`` has the ranks of a run compute a part each; all get the whole."""

    world: World
    """Set by the run before the bundle is used; `ALONE` until then."""


@runtime_checkable
class TrainSet(Protocol):
    """Examples that can be asked for by row, so that the data position is just a step number."""

    digest: str

    def __len__(self) -> int:
        """Return the number of examples (packed rows for packed text)."""

    def batch(self, rows: Sequence[int]) -> Batch:
        """Collate these rows into one micro-batch. Pure: the same rows give the same batch."""


@frozen(eq=False)
class Probe:
    """A fixed held-out set with a metric, bound to the phase that teaches it, or to the base.

    phase: name of the teaching phase, or ``"base"``; empty: the phase whose data it came with.
    metric: what `mgk_evaluate` dispatches on. higher_is_better: direction of the metric. chance:
    score of a guess, None where it has none. floor: best score that can be reached, where that is
    known. split: ``dev`` or ``test``. when: ``always`` for every row of the retention matrix,
    ``ends`` for the first and the last only.
    """

    name: str
    phase: str
    metric: str
    items: Sequence[Any] = field(repr=False)
    higher_is_better: bool
    chance: float | None = None
    floor: float | None = None
    split: str = "test"
    digest: str = ""
    when: Literal["always", "ends"] = "always"


@frozen
class Answer:
    """What the model generated for one item of a probe, for a person to read."""

    prompt: str
    text: str


@frozen
class Score:
    """What a probe measured: a mean over n items with its standard error.

    per_item: each item's own value, for paired tests; the mean of them is ``value`` unless
    the metric defines it differently (perplexity is the exponential of a weighted mean).
    extra: further figures of the same pass (margin, tokens, invalid share ...).
    answers: of some items, where the metric lets the model generate; kept with the row, part of no event.
    """

    probe: str
    metric: str
    value: float
    n: int
    stderr: float
    higher_is_better: bool
    chance: float | None = None
    per_item: tuple[float, ...] = field(default=(), repr=False)
    extra: Mapping[str, float] = field(factory=dict)
    answers: tuple[Answer, ...] = field(default=(), repr=False)

    def better_by(self, other: Score) -> float:
        """Return by how much self is better than other (negative: worse), in the metric's unit."""
        gap = self.value - other.value
        return gap if self.higher_is_better else -gap


@frozen(eq=False)
class PhaseData:
    """What `mgk_load_data` returns for one phase.

    dev: batches for choosing the best step; never test. verify: a few fixed batches on which
    merged is compared with live. calibration: batches that stand for what the model knew, used
    for statistics (of the base before phase 0); empty where there are none. held_out: the dev set as
    rows, for losses that read more of an example than its batch has (the rejected answer).
    """

    train: TrainSet
    probes: tuple[Probe, ...] = ()
    dev: tuple[Batch, ...] = ()
    verify: tuple[Batch, ...] = ()
    calibration: tuple[Batch, ...] = ()
    notes: tuple[str, ...] = ()
    held_out: TrainSet | None = None


__all__ = [
    "PICTURE",
    "Adaptable",
    "Answer",
    "Batch",
    "Bundle",
    "ChecksItems",
    "Choice",
    "ComputesTogether",
    "GradientFn",
    "HasCard",
    "HasLabelledAnswers",
    "HasPairs",
    "HasVocabulary",
    "HasWeights",
    "LabelledAnswer",
    "LanguageBundle",
    "LossPerItem",
    "OptionScores",
    "OwnGradients",
    "PhaseData",
    "Picture",
    "Pictured",
    "Predictions",
    "PredictsTokens",
    "PreferencePair",
    "Probe",
    "Score",
    "ScoresOptions",
    "SeesPictures",
    "Shareable",
    "SharesOut",
    "Speaks",
    "Tokens",
    "TrainSet",
    "Unpacks",
    "require_unpacks",
]

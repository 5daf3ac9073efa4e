"""A Hugging Face model as mgk's `LanguageBundle`: loss, outputs, scores, generation, saving."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from attrs import define, field
from torch import Tensor, nn

from mgk_core.contract.bundle import OptionScores, Picture, Pictured, Tokens
from mgk_core.contract.conversation import Message
from mgk_core.contract.errors import InputError
from mgk_core.contract.progress import Advance, counting
from mgk_core.contract.world import ALONE, World
from mgk_hf.batch import PADDING, TokenBatch, pack, pad, predictors, split, unpack
from mgk_hf.chat_template import Settings
from mgk_hf.conversation import HfConversation
from mgk_hf.layout import on_device
from mgk_hf.limits import Limits
from mgk_hf.network import Network
from mgk_hf.pictures import Eyes, PictureBatch
from mgk_hf.precision import exact
from mgk_hf.predictions import HeadPredictions, noisy_embeddings
from mgk_hf.scoring import Item, collect, groups, pack_items, separate_items, size_of
from mgk_hf.turns import ChatTurns
from mgk_hf.vocabulary import HfVocabulary

OUTPUTS = 64
"""How many positions `HfBundle.outputs` shows of its own choice: 64 rows of Gemma's logits are 67 MB."""


@define(eq=False)
class HfBundle:
    """A model, its tokenizer, and the questions that can be put to it.

    notice: licence text to be shown at first use, empty where there is none. source: the local
    directory that the base came from. budget: positions computed together in `score`. preparation:
    what was done to the base before it became this one, for the ledger. adaptable: names of the
    modules that adapters may change, empty for all.
    """

    network: Network
    tokenizer: Any
    device: torch.device
    notice: str = ""
    source: Path | None = None
    budget: int = 1024
    notes: list[str] = field(factory=list)
    preparation: dict[str, Any] = field(factory=dict)
    adaptable: tuple[str, ...] = ()
    settings: Settings = field(factory=Settings)
    world: World = ALONE
    model: nn.Module = field(init=False)
    limits: Limits = field(init=False)
    conversation: HfConversation = field(init=False)
    _eyes: Eyes | None = field(init=False, default=None)
    vocabulary: HfVocabulary = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.model = self.network.whole
        self.limits = Limits.of(self.model, self.tokenizer)
        self.conversation = HfConversation(
            self.tokenizer, self.settings, ends_of(self.model)
        )
        start = self.preparation.get("first_id", 0)
        added = range(start, start + self.preparation.get("tokens", 0))
        self.vocabulary = HfVocabulary(self.tokenizer, added)

    def pack(self, examples: Sequence[Tokens]) -> TokenBatch:
        """Make one micro-batch of examples: one packed row, or padded rows for models that cannot pack."""
        self.limits.check(examples)
        if any(isinstance(e, Pictured) and e.pictures for e in examples):
            return self.eyes.pack(examples, self._pad_id).to(self.device)
        sequences = [(e.ids, e.labels) for e in examples]
        batch = pack(sequences) if self.network.packs else pad(sequences, self._pad_id)
        return on_device(batch, self.device)

    def unpack(self, batch: TokenBatch) -> list[Tokens]:
        """Return a batch's examples; of a first token, which is never learnt, the label is lost."""
        if isinstance(batch, PictureBatch):
            raise InputError(
                "examples with pictures cannot be kept for later phases (replay);"
                " leave that retention method out of phases with image-chat data"
            )
        return [Tokens(tuple(ids), tuple(labels)) for ids, labels in unpack(batch)]

    def see(
        self,
        chats: Sequence[Sequence[Message]],
        pictures: Sequence[Sequence[Picture]],
    ) -> list[list[Pictured]]:
        """Return chats that show pictures as training examples."""
        return self.eyes.exchanges(self._chat_turns(), chats, pictures)

    def see_prompts(
        self,
        chats: Sequence[Sequence[Message]],
        pictures: Sequence[Sequence[Picture]],
    ) -> list[Pictured]:
        """Return prompts that show pictures."""
        return self.eyes.prompts(self._chat_turns(), chats, pictures)

    @property
    def eyes(self) -> Eyes:
        """The base's processor of pictures, loaded when it is first needed."""
        if self._eyes is None:
            self._eyes = Eyes.of(self.source, self.tokenizer)
        return self._eyes

    def _chat_turns(self) -> ChatTurns:
        turns = self.conversation.styled("chat").turns
        assert isinstance(turns, ChatTurns)  # noqa: S101 - the style is "chat"
        return turns

    def loss(self, batch: TokenBatch) -> tuple[Tensor, Tensor]:
        """Return (summed negative log-likelihood of the labels, their number), 0-dim fp32."""
        batch = self._fit(batch)
        where, labels = predictors(batch)
        hidden = self.network(batch)
        total = self.network.head.nll(hidden[where], labels)
        return total, torch.full((), float(labels.numel()), device=total.device)

    def predictions(
        self, batch: TokenBatch, *, embedding_noise: float = 0.0
    ) -> HeadPredictions:
        """Run the model over a batch; return what it predicts where labels are."""
        batch = self._fit(batch)
        where, labels = predictors(batch)
        with noisy_embeddings(self.model, batch, embedding_noise):
            hidden = self.network(batch)
        example = batch.segment_ids.flatten()[where]
        return HeadPredictions(self.network.head, hidden[where], labels, example)

    def outputs(self, batch: TokenBatch, positions: Tensor | None = None) -> Tensor:
        """Return fp32 logits at flat positions, (positions, V), from the masters themselves.

        None: where labels are predicted, the first `OUTPUTS` of them; all positions where no
        label is.
        """
        batch = self._fit(batch)
        if positions is None:
            where, _ = predictors(batch)
            positions = (where if where.numel() else self._any(batch))[:OUTPUTS]
        with exact():
            return self.network.head.logits(self.network(batch)[positions])

    def valid(self, batch: TokenBatch) -> Tensor | None:
        """Return (B·T,) True where there is no padding; None where there is none at all."""
        mask = (self._fit(batch).segment_ids != PADDING).flatten()
        return None if bool(mask.all()) else mask

    @torch.no_grad()
    def score(self, items: Sequence[Item]) -> list[OptionScores]:
        """Score each item's options: the log-likelihood of their tokens after the prompt."""
        self.limits.check(items)
        parts = list(groups(items, self.budget))
        with evaluating(self.model), counting(len(items)) as advance:

            def scored(number: int) -> list[list[Any]]:
                chosen = [items[i] for i in parts[number]]
                sums = (
                    self._branched(chosen)
                    if self.network.packs
                    else self._separate(chosen)
                )
                advance(len(chosen))
                found = collect(chosen, iter(sums), self.tokenizer)
                return [[f.logprob, f.tokens, f.bytes] for f in found]

            found = self.world.deal(len(parts), scored)
        place = {
            i: OptionScores(*map(tuple, s))
            for p, f in zip(parts, found, strict=True)
            for i, s in zip(p, f, strict=True)
        }
        return [place[i] for i in range(len(items))]

    def check_items(self, items: Sequence[Any]) -> tuple[str, ...]:
        """Refuse what the base cannot read; return notes on what it was not made for."""
        return self.limits.check(items)

    def together(self, items: Sequence[Any]) -> list[Any]:
        """Return the largest group of items that `score` computes in one go; of examples: of their continuations."""
        largest = max(
            groups(items, self.budget),
            key=lambda group: sum(size_of(items[i]) for i in group),
        )
        return [items[i] for i in largest]

    def option_logprobs(self, items: Sequence[Item]) -> Tensor:
        """Return the mean log-likelihood per token of every option, (options,) fp32, with its gradient."""
        if self.network.packs:
            packed = pack_items(items)
            where, option, wanted = (
                t.to(self.device) for t in (packed.where, packed.option, packed.wanted)
            )
            nll = self.network.head.token_nll(
                self.network(packed.batch.to(self.device))[where], wanted
            )
        else:
            nll, option = self._padded(items)
        sums = nll.new_zeros(sum(len(item.options) for item in items)).index_add(
            0, option, -nll
        )
        return sums / torch.bincount(option, minlength=len(sums))

    def _branched(self, items: Sequence[Item]) -> list[float]:
        packed = pack_items(items)
        options = int(packed.option[-1]) + 1
        hidden = self.network(packed.batch.to(self.device))
        # Options begin at one position, so its logits are computed once for all of them.
        places, place = torch.unique(packed.where.to(self.device), return_inverse=True)
        logprob = self.network.head.logprob(
            hidden[places], place, packed.wanted.to(self.device)
        )
        sums = torch.zeros(options, dtype=torch.float64)
        result: list[float] = sums.index_add_(
            0, packed.option, logprob.double().cpu()
        ).tolist()
        return result

    def _separate(self, items: Sequence[Item]) -> list[float]:
        nll, option = self._padded(items)
        sums = torch.zeros(
            sum(len(item.options) for item in items), dtype=torch.float64
        )
        result: list[float] = sums.index_add_(
            0, option.cpu(), -nll.double().cpu()
        ).tolist()
        return result

    def _padded(self, items: Sequence[Item]) -> tuple[Tensor, Tensor]:
        """Put each option into a row of its own; return (its tokens' NLL (N,), whose option each is (N,))."""
        sequences = [
            (ids, [-100] * start + ids[start:]) for ids, start in separate_items(items)
        ]
        batch = pad(sequences, self._pad_id).to(self.device)
        where, labels = predictors(batch)
        return self.network.head.token_nll(
            self.network(batch)[where], labels
        ), where // batch.input_ids.shape[1]

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[Sequence[int] | Pictured],
        *,
        max_new_tokens: int,
        stop: Sequence[int] = (),
    ) -> list[list[int]]:
        """Continue each prompt with the most likely token each time, up to the end of its turn."""
        seen = self._seen(prompts)
        ids_of = [p.ids if isinstance(p, Pictured) else p for p in prompts]
        width = max(len(p) for p in ids_of)
        self.limits.check_length(width + max_new_tokens)
        rows = [[self._pad_id] * (width - len(p)) + list(p) for p in ids_of]
        shown = [[0] * (width - len(p)) + [1] * len(p) for p in ids_of]
        ends = list(dict.fromkeys([*stop, *self.conversation.stops]))
        whole: Any = self.model
        with (
            evaluating(self.model),
            greedy(whole, ends, self._pad_id),
            counting(max_new_tokens, "tokens") as advance,
        ):
            ids = torch.tensor(rows, device=self.device)
            if seen:
                seen["token_type_ids"] = (ids == self.eyes.token).long()
            made = whole.generate(
                streamer=_Counter(advance),
                input_ids=ids,
                **seen,
                attention_mask=torch.tensor(shown, device=self.device),
                max_new_tokens=max_new_tokens,
            )
        return [_until(row, {*ends, self._pad_id}) for row in made[:, width:].tolist()]

    def _seen(self, prompts: Sequence[Any]) -> dict[str, Tensor]:
        """Return the pictures of prompts; empty where none shows any."""
        shown = [p for p in prompts if isinstance(p, Pictured) and p.pictures]
        if not shown:
            return {}
        return {"pixel_values": self.eyes.pixels(shown).to(self.device)}

    def save(self, directory: Path) -> None:
        """Write the whole model as transformers loads it, with the base's files that are still true."""
        from mgk_hf.beside import keep_beside
        from mgk_hf.saving import save

        save(
            self.model, self.tokenizer, directory,
            source=self.source, notice=self.notice, stops=self.conversation.stops,
        )  # fmt: skip
        keep_beside(self.source, directory, grown="tokens" in self.preparation)

    def card(self) -> dict[str, Any]:
        """Return what a model card states about the base: hub metadata and licence."""
        from mgk_hf.card import metadata

        return metadata(self.model, self.source, multimodal=bool(self.network.language))

    def adapter_keys(self) -> dict[str, Any]:
        """Return what names this base in PEFT's ``adapter_config.json``."""
        from mgk_hf.sharing import adapter_keys

        keys = adapter_keys(self.model)
        if added := self.preparation.get("tokens"):
            keys["base_model_name_or_path"] = (
                f"{keys['base_model_name_or_path']} with {added} tokens added"
            )
        elif adapter := self.preparation.get("adapter"):
            keys["base_model_name_or_path"] += f" with {adapter} merged"
        return keys

    def complete_export(self, directory: Path) -> None:
        """Write tokenizer, ends of an answer and licence files beside an exported adapter.

        :raises InputError: the base that others load is not the one that the adapter needs
        """
        from mgk_hf.licence import keep
        from mgk_hf.saving import name_stops

        if added := self.preparation.get("tokens"):
            raise InputError(
                f"{added} tokens were added to this run's base (base.new_tokens), and the base that an"
                " adapter names has no rows for them; share the whole model in RUN/model"
            )
        if adapter := self.preparation.get("adapter"):
            raise InputError(
                f"this run began with the adapter {adapter} merged into its base, and others cannot load"
                " that base by a name; share the whole model in RUN/model"
            )
        self.tokenizer.save_pretrained(str(directory))
        generation: Any = self.model.generation_config
        if generation is not None:
            generation.save_pretrained(str(directory))
        if stops := self.conversation.stops:
            name_stops(directory / "generation_config.json", stops)
        keep(self.source, directory, self.notice)

    def exported_outputs(
        self, directory: Path, batches: Sequence[Any]
    ) -> list[Tensor] | None:
        """Return `outputs` of an exported adapter as PEFT loads it; None where PEFT cannot."""
        from mgk_hf.sharing import can_check, exported_outputs

        if not can_check(self.model):
            return None
        return exported_outputs(self.model, directory, batches, OUTPUTS)

    @property
    def _pad_id(self) -> int:
        pad_id = self.tokenizer.pad_token_id
        return (
            int(pad_id) if pad_id is not None else int(self.tokenizer.eos_token_id or 0)
        )

    def _fit(self, batch: TokenBatch) -> TokenBatch:
        """Unpack a batch that was packed by hand for a model that cannot pack."""
        made_here = batch.where is not None  # by `pack`, for this network
        if (
            self.network.packs
            or made_here
            or bool((batch.segment_ids[:, 0] == batch.segment_ids.amax(1)).all())
        ):
            return batch
        return split(batch, self._pad_id)

    @staticmethod
    def _any(batch: TokenBatch) -> Tensor:
        return (batch.segment_ids.flatten() != PADDING).nonzero().squeeze(1)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block and leave each module as it was."""
    training = [m for m in model.modules() if m.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def greedy(model: Any, ends: list[int], pad: int) -> Iterator[None]:
    """Set the base's generation configuration aside inside the block.

    Its repetition penalty and its kin would act on the most likely token too; transformers fills
    them in wherever a call leaves them out.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig(
        do_sample=False, num_beams=1, eos_token_id=ends or None, pad_token_id=pad
    )
    try:
        yield
    finally:
        model.generation_config = own


def ends_of(model: Any) -> tuple[int, ...]:
    """Return the tokens that a base's generation configuration ends with."""
    config = getattr(model, "generation_config", None)
    ends = getattr(config, "eos_token_id", None)
    if ends is None:
        return ()
    return (ends,) if isinstance(ends, int) else tuple(int(end) for end in ends)


def _until(ids: list[int], ends: set[int]) -> list[int]:
    for place, token in enumerate(ids):
        if token in ends:
            return ids[:place]
    return ids


@define
class _Counter:
    """A streamer of transformers that counts tokens; the first call brings the prompts."""

    advance: Advance
    started: bool = False

    def put(self, _: Tensor) -> None:
        """Count one token of every prompt."""
        if self.started:
            self.advance(1)
        self.started = True

    def end(self) -> None:
        """Do nothing: transformers calls this after the last token."""

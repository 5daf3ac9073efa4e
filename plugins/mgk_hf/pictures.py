"""Pictures in a chat for models of Gemma 3's kind, MedGemma among them.

The processor puts a fixed number of soft tokens in place of each picture; the model fills them with what its
vision tower sees. They are never learnt.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen
from torch import Tensor

from mgk_core.contract.bundle import PICTURE, Picture, Pictured, Tokens
from mgk_core.contract.conversation import Message
from mgk_core.contract.errors import EnvironmentFault, InputError
from mgk_hf.batch import IGNORED, PADDING, TokenBatch, pad
from mgk_hf.cutting import Cutter
from mgk_hf.turns import ChatTurns


@frozen(eq=False)
class PictureBatch(TokenBatch):
    """Padded rows with the pictures of all of them, in order.

    pixel_values: (pictures, channels, height, width) fp32. soft: (B, T), 1 at a picture's tokens.
    """

    pixel_values: Tensor = field(kw_only=True)
    soft: Tensor = field(kw_only=True)

    def to(self, device: torch.device | str) -> PictureBatch:
        """Return the batch on a device."""
        names = ("input_ids", "labels", "position_ids", "segment_ids", "pixel_values", "soft")  # fmt: skip
        return evolve(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def inputs(self) -> dict[str, Tensor]:
        """What the model takes, without labels."""
        return {
            "input_ids": self.input_ids,
            "attention_mask": (self.segment_ids != PADDING).long(),
            "token_type_ids": self.soft,
            "pixel_values": self.pixel_values,
        }


@frozen(eq=False, slots=False)
class PictureCutter(Cutter):
    """Puts the processor's markup in place of each picture's mark before a text is cut."""

    sequence: str

    def cut(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of rendered texts."""
        return super().cut([text.replace(PICTURE, self.sequence) for text in texts])


@frozen(eq=False)
class Eyes:
    """A processor. sequence: its markup of one picture. token: the soft token. size: how many."""

    processor: Any = field(repr=False)
    sequence: str
    token: int
    size: int

    @classmethod
    def of(cls, source: Path | None, tokenizer: Any) -> Eyes:
        """Load the processor beside a base's weights.

        :raises InputError: the base has none, or one of another kind than Gemma 3's
        """
        if source is None or not any(source.glob("*processor_config.json")):
            raise InputError(
                "data type 'image-chat' needs a base that sees pictures, with its processor beside the"
                " weights (preprocessor_config.json), such as google/medgemma-4b-it; this base has none"
            )
        try:
            import PIL  # noqa: F401 - transformers' own message is about torchvision
            from transformers import AutoProcessor
        except ImportError as error:
            raise EnvironmentFault(
                "data type 'image-chat' needs Pillow: pip install 'mgk[vision]'"
            ) from error
        processor: Any = AutoProcessor.from_pretrained(str(source))
        sequence = getattr(processor, "full_image_sequence", None)
        if sequence is None:
            raise InputError(
                f"data type 'image-chat' reads processors of Gemma 3's kind, and this base has a"
                f" {type(processor).__name__}"
            )
        token = tokenizer.convert_tokens_to_ids(processor.tokenizer.image_token)
        return cls(processor, sequence, int(token), int(processor.image_seq_length))

    def exchanges(
        self,
        turns: ChatTurns,
        chats: Sequence[Sequence[Message]],
        pictures: Sequence[Sequence[Picture]],
    ) -> list[list[Pictured]]:
        """Return each chat as training examples, each with the pictures that it shows."""
        seeing = self._seeing(turns)
        found = []
        for examples, shown in zip(seeing.exchanges(chats), pictures, strict=True):
            found.append([self._pictured(example, shown) for example in examples])
        return found

    def prompts(
        self,
        turns: ChatTurns,
        chats: Sequence[Sequence[Message]],
        pictures: Sequence[Sequence[Picture]],
    ) -> list[Pictured]:
        """Return the prompts of chats; nothing of them is learnt."""
        made = self._seeing(turns).prompts(chats)
        return [
            self._pictured(Tokens(ids, (IGNORED,) * len(ids)), shown)
            for ids, shown in zip(made, pictures, strict=True)
        ]

    def pack(self, examples: Sequence[Tokens], pad_id: int) -> PictureBatch:
        """Make one micro-batch: a padded row for each example, the pictures read and processed."""
        rows = pad([(e.ids, e.labels) for e in examples], pad_id)
        return PictureBatch(
            rows.input_ids,
            rows.labels,
            rows.position_ids,
            rows.segment_ids,
            pixel_values=self.pixels(examples),
            soft=(rows.input_ids == self.token).long(),
        )

    def pixels(self, examples: Sequence[Tokens]) -> Tensor:
        """Return the pictures of all examples as the vision tower takes them."""
        from PIL import Image

        shown = [p for e in examples if isinstance(e, Pictured) for p in e.pictures]
        images = [Image.open(io.BytesIO(p.read())).convert("RGB") for p in shown]
        made = self.processor.image_processor(images=images, return_tensors="pt")
        pixels: Tensor = made["pixel_values"]
        return pixels

    def _seeing(self, turns: ChatTurns) -> ChatTurns:
        return evolve(
            turns, cutter=PictureCutter(turns.cutter.tokenizer, self.sequence)
        )

    def _pictured(self, example: Tokens, shown: Sequence[Picture]) -> Pictured:
        count = example.ids.count(self.token) // self.size
        labels = tuple(
            IGNORED if i == self.token else label
            for i, label in zip(example.ids, example.labels, strict=True)
        )
        return Pictured(example.ids, labels, example.nbytes, tuple(shown[:count]))

"""The tokens of a base, for adapters that train chosen rows of its table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from attrs import frozen


@frozen(eq=False)
class HfVocabulary:
    """A tokenizer's tokens by id and by text. added: ids of those that this run added to the base."""

    tokenizer: Any
    added: range = range(0)

    def __deepcopy__(self, memo: dict[int, Any]) -> HfVocabulary:
        """Share the tokenizer: a model's copy has the same tokens."""
        return self

    def id_of(self, text: str) -> int | None:
        """Return the id of the one token that this text is; None where it is none or several."""
        if text in self.tokenizer.get_vocab():
            return int(self.tokenizer.convert_tokens_to_ids(text))
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return int(ids[0]) if len(ids) == 1 else None

    def texts(self) -> Sequence[str]:
        """Return the text of every token, by id; of special ones and of parts of a letter none."""
        special = set(self.tokenizer.all_special_ids)
        rows = [[i] for i in range(len(self.tokenizer))]
        texts = self.tokenizer.batch_decode(rows, clean_up_tokenization_spaces=False)
        return ["" if i in special else text for i, text in enumerate(texts)]

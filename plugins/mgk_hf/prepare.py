"""New tokens for a base, before anything else is done with it: chosen, added, recorded in the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from attrs import frozen
from torch import nn

from mgk_core.contract.errors import InputError
from mgk_core.model.digest import base_digest
from mgk_hf.extend import Extension, choose, extend
from mgk_hf.specs import HfSpec

Read = Callable[[str], Iterable[str]]
"""Name of a file → its texts, or its lines."""


@frozen
class Added:
    """What was added, and the digest of the base before."""

    extension: Extension
    base: str

    def entry(self, model: nn.Module) -> dict[str, Any]:
        """Return the ledger's entry: from which base to which."""
        made = self.extension
        tokens = "\n".join(made.tokens).encode()
        return {
            "what": "new tokens",
            "base": self.base,
            "prepared": base_digest(model),
            "tokens": len(made.tokens),
            "first_id": made.start,
            "list": hashlib.blake2b(tokens, digest_size=32).hexdigest(),
            "corpus_tokens": {"before": made.before, "after": made.after},
        }


def add_tokens(model: Any, tokenizer: Any, spec: HfSpec, read: Read) -> Added | None:
    """Add the tokens that the spec names or has chosen; None where it asks for none.

    :raises InputError: nothing is left to add, a token is empty, or a list of tokens names a file
    """
    if not spec.new_tokens and not spec.new_tokens_from:
        return None
    corpus = spec.new_tokens_from
    files = (corpus,) if isinstance(corpus, str) else corpus
    texts = [text for name in files for text in read(name) if text.strip()]
    named = _named(spec.new_tokens, read)
    chosen = choose(texts, tokenizer, spec.new_tokens_count) if texts else []
    before = base_digest(model)
    return Added(extend(model, tokenizer, [*named, *chosen], texts), before)


def _named(setting: str | tuple[str, ...], read: Read) -> list[str]:
    if isinstance(setting, str):
        return [line.strip() for line in read(setting) if line.strip()]
    for token in setting:
        if Path(token).is_file():
            raise InputError(
                f"base.new_tokens: {token} is a file; a list holds the tokens themselves: give a file of them"
                f" as new_tokens = {token!r}"
            )
    return list(setting)

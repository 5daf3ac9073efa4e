"""Prepare a base before the baseline: extend its tokenizer, train the new rows, record both in the ledger."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

from attrs import frozen

from mgk_core.model.digest import base_digest
from mgk_hf.extend import Extension, choose, extend
from mgk_hf.network import Network
from mgk_hf.rows import train_rows
from mgk_hf.specs import HfSpec
from mgk_hf.turns import begin_of

Read = Callable[[str], Iterable[str]]
"""Name of a file → its texts, or its lines."""


@frozen
class Added:
    """What was added, to which base, and the texts that it is trained on."""

    extension: Extension
    base: str
    texts: tuple[str, ...]


def tokens(model: Any, tokenizer: Any, spec: HfSpec, read: Read) -> Added | None:
    """Add the tokens that the spec names or has chosen; None where it asks for none."""
    if not spec.new_tokens and not spec.new_tokens_from:
        return None
    texts = tuple(
        text
        for name in _several(spec.new_tokens_from)
        for text in read(name)
        if text.strip()
    )
    named = [
        line.strip()
        for name in _several(spec.new_tokens)
        for line in read(name)
        if line.strip()
    ]
    chosen = choose(texts, tokenizer, spec.new_tokens_count) if texts else []
    before = base_digest(model)
    return Added(extend(model, tokenizer, [*named, *chosen], texts), before, texts)


def train(
    network: Network, tokenizer: Any, spec: HfSpec, added: Added
) -> dict[str, Any]:
    """Train the new rows on the texts and return the ledger's entry: from which base to which."""
    made, loss = added.extension, None
    if spec.new_tokens_steps and added.texts:
        begin = begin_of(tokenizer)
        ids = tokenizer(list(added.texts), add_special_tokens=False)["input_ids"]
        loss = train_rows(
            network,
            [[*begin, *i] for i in ids],
            start=made.start,
            count=len(made.tokens),
            steps=spec.new_tokens_steps,
            lr=spec.new_tokens_lr,
            seed=spec.seed,
        )
    return {
        "what": "new tokens",
        "base": added.base,
        "prepared": base_digest(network.whole),
        "tokens": len(made.tokens),
        "first_id": made.start,
        "list": hashlib.blake2b(
            "\n".join(made.tokens).encode(), digest_size=32
        ).hexdigest(),
        "corpus_tokens": {"before": made.before, "after": made.after},
        "steps": spec.new_tokens_steps if loss is not None else 0,
        "loss": loss,
    }


def _several(setting: str | tuple[str, ...]) -> tuple[str, ...]:
    return (setting,) if isinstance(setting, str) else setting

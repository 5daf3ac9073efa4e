"""The markup of a run: fixed when it starts, recorded, and used again by all that opens the run.

A chat template may print the date; what was trained on one day must be asked in the same words on
another.
"""

from __future__ import annotations

from mgk_core.contract.bundle import Bundle
from mgk_core.contract.conversation import Conversation
from mgk_core.contract.files import read_json
from mgk_core.record.store import Store

NAME = "base/conversation.json"


def conversation_of(bundle: Bundle) -> Conversation | None:
    """Return how a bundle's base is spoken to; None where it is not a language model."""
    found: Conversation | None = getattr(bundle, "conversation", None)
    return found


def restore_markup(bundle: Bundle, store: Store) -> None:
    """Use the markup that the run has recorded; runs of earlier versions have recorded none."""
    conversation, path = conversation_of(bundle), store.path(NAME)
    if conversation is not None and path.is_file():
        conversation.restore(read_json(path))


def record_markup(bundle: Bundle, store: Store) -> None:
    """Record the markup of a run that starts."""
    conversation = conversation_of(bundle)
    if conversation is not None:
        store.write_json(NAME, conversation.record())

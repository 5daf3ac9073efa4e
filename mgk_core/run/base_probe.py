"""A small probe of what a language model knew before, where no other probe measures that."""

from __future__ import annotations

from typing import Any

from attrs import evolve

from mgk_core.contract.bundle import Speaks
from mgk_core.run.session import Session

NAME = "base-text"
TYPE = "text"
PIECES = 16
"""Pieces of text that are scored: seconds on a CPU."""


def measure_base(session: Session) -> None:
    """Add the probe, with a note; nothing where ``run.base_probe`` is off or it is not needed."""
    config, bundle = session.config, session.bundle
    if not config.run.base_probe or any(p.phase == "base" for p in session.probes):
        return
    if not isinstance(bundle, Speaks) or bundle.tokenizer is None:
        return
    if TYPE not in session.hooks.plugins.registry.types("probe"):
        return
    spec: Any = session.hooks.spec("probe", {"type": TYPE, "limit": PIECES})
    split = config.phases[0].evaluate.split
    for probe in session.hooks.load_probes(spec, NAME, bundle):
        session.own_probes.append(evolve(probe, split=split))
    note = (
        f"no probe measures what the base knows: {NAME} was added, the perplexity of {PIECES}"
        " short texts that come with mgk; run.base_probe = false leaves it out"
    )
    session.notes.append(note)
    session.events("note", phase="base", text=note)

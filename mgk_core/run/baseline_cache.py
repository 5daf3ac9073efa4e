"""Scores of an untouched base, kept across runs: the same base and probe need measuring once.

The baseline is the first thing that a run measures, and on an ordinary CPU the longest wait before
training. A score is reused only where everything that decides its bits is the same: the base's
weights, its settings, the tokenizer, the probe's items, the code of all plugins that take part, the
libraries and the machine. What was fast to measure is not kept.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

import attrs
import cattrs
from attrs import define, frozen

from mgk_core.contract.bundle import Probe, Score
from mgk_core.contract.cache import cache_directory, keep
from mgk_core.contract.context import PhaseContext
from mgk_core.host.hooks import Hooks
from mgk_core.run.identity import identity_of
from mgk_core.run.session import Session

FORMAT = 1
WORTH = 2.0
"""Seconds that measuring a probe must have taken to be worth a file."""

DECIDES = (
    "base",
    "config.base.",
    "config.run.",
    "tokenizer",
    "environment.",
    "library.",
    "plugin.",
)
"""What of a run's identity decides a baseline score; phases and their data do not."""


@frozen
class BaselineCache:
    """Scores by what decides them. identity: digest of the base and all that computes with it."""

    directory: Path
    identity: str

    def get(self, probe: Probe) -> Score | None:
        """Return the kept score of a probe; None where there is none, or its file is damaged."""
        try:
            raw = json.loads(self._path(probe).read_bytes())
            table = raw["score"]
            if raw["hash"] != _digest(table):
                return None
            return cattrs.structure(table, Score)
        except (OSError, ValueError, KeyError, TypeError, cattrs.BaseValidationError):
            return None

    def put(self, probe: Probe, score: Score, seconds: float) -> None:
        """Keep a score that took long; a cache that cannot be written only costs time later."""
        if seconds < WORTH:
            return
        table = attrs.asdict(score)
        text = json.dumps({"score": table, "hash": _digest(table)})
        keep(self._path(probe), text)

    def _path(self, probe: Probe) -> Path:
        facts = (
            self.identity,
            probe.digest,
            probe.metric,
            probe.name,
            len(probe.items),
        )
        return self.directory / f"{_digest(facts)}.json"


@define
class CachedEvaluation:
    """Evaluates the untouched base, probe by probe, with what the cache has. reused: how many it had."""

    hooks: Hooks
    cache: BaselineCache
    reused: int = 0

    def evaluate(self, ctx: PhaseContext, probe: Probe) -> Score:
        """Return a probe's score, kept or measured."""
        kept = self.cache.get(probe)
        table = ctx.world.same(None if kept is None else attrs.asdict(kept))
        if table is not None:
            self.reused += 1
            return cattrs.structure(table, Score)
        began = time.perf_counter()
        score = self.hooks.evaluate(ctx, probe)
        if ctx.world.leader:
            self.cache.put(probe, score, time.perf_counter() - began)
        return score


def cached_evaluation(session: Session) -> CachedEvaluation | None:
    """Return what measures a session's baseline; None where that is off or a plugin watches evaluations."""
    if not session.config.run.reuse_baseline or _watched(session):
        return None
    cache = BaselineCache(cache_directory() / "baseline", identity(session))
    return CachedEvaluation(session.hooks, cache)


def identity(session: Session) -> str:
    """Return a digest of all but the probes that decides a session's baseline scores."""
    found = {k: v for k, v in identity_of(session).items() if k.startswith(DECIDES)}
    return _digest([FORMAT, found])


def _watched(session: Session) -> bool:
    """Whether a plugin wraps `mgk_evaluate`: it expects to see each evaluation, and may change it."""
    hook = session.hooks.plugins.manager.hook.mgk_evaluate
    return any(implementation.wrapper for implementation in hook.get_hookimpls())


def _digest(value: Mapping[str, object] | list[object] | tuple[object, ...]) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=20).hexdigest()

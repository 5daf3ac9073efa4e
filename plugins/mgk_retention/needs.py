"""What later phases will ask for, so that nothing else is collected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from attrs import frozen

from mgk_core.contract.context import PhaseContext
from mgk_core.contract.settings import PhaseConfig
from mgk_retention.specs import (
    RETENTION,
    DistilSpec,
    DriftGuardSpec,
    EllaSpec,
    EwcSpec,
    LedgerMergeSpec,
    MethodSpec,
    MomentsSpec,
    OloraSpec,
    OpcmSpec,
    ReplaySpec,
)


@frozen
class Form:
    """How a second moment is kept. k: eigenvectors, None for the whole matrix."""

    k: int | None
    tail: str


@frozen
class Needs:
    """Statistics to collect. None or False where nobody needs them."""

    inputs: Form | None
    outputs: Form | None
    fisher: bool
    factors: bool
    replay: ReplaySpec | None
    max_tokens: int
    deltas: bool = False
    opcm: bool = False

    @property
    def gradients(self) -> bool:
        """Whether a backward pass is needed."""
        return self.outputs is not None or self.fisher

    @property
    def layers(self) -> bool:
        """Whether a pass over the data is needed at all."""
        return self.inputs is not None or self.gradients


def needs_after(ctx: PhaseContext) -> Needs:
    """Return what the phases after this one (for the base: all) need to know of it."""
    later = ctx.config.phases if ctx.base_phase else ctx.config.phases[ctx.index + 1 :]
    return needs_of([s for p in later for s in methods_of(p)])


def methods_of(phase: PhaseConfig) -> Iterator[MethodSpec]:
    """Yield this plugin's entries of a phase, those that a recovery may add included."""
    yield from phase.of(MethodSpec)
    for spec in phase.recover:
        added: Mapping[str, Mapping[str, Any]] = getattr(spec, "retention", {})
        for name, options in added.items():
            if name in RETENTION:
                yield RETENTION[name](type=name, **options)


def needs_of(methods: list[MethodSpec]) -> Needs:
    """Return the union of what these methods need."""
    moments = [m for m in methods if isinstance(m, MomentsSpec)]
    guards = [m for m in methods if isinstance(m, DriftGuardSpec)]
    return Needs(
        inputs=_form(moments),
        outputs=_form(guards),
        fisher=any(isinstance(m, EwcSpec) for m in methods),
        factors=any(isinstance(m, OloraSpec) for m in methods),
        replay=_replay(methods),
        max_tokens=max((m.max_tokens for m in methods), default=0),
        deltas=any(isinstance(m, (LedgerMergeSpec, EllaSpec)) for m in methods),
        opcm=any(isinstance(m, OpcmSpec) for m in methods),
    )


def _form(methods: list[Any]) -> Form | None:
    """Return the widest form that any of the methods asks for."""
    if not methods:
        return None
    whole = any(m.sketch == 0 for m in methods)
    diagonal = any(m.tail == "diagonal" for m in methods)
    return Form(
        None if whole else max(m.sketch for m in methods),
        "diagonal" if diagonal else "isotropic",
    )


def _replay(methods: list[MethodSpec]) -> ReplaySpec | None:
    """Return the replay that keeps most; self-distillation on kept examples counts as one."""
    wanted = [m for m in methods if isinstance(m, ReplaySpec)]
    wanted += [
        ReplaySpec(type="replay", share=m.kept_share)
        for m in methods
        if isinstance(m, DistilSpec) and m.kept_share is not None
    ]
    return max(wanted, key=lambda m: m.share, default=None)

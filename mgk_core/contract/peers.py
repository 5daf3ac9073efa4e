"""How a plugin asks the other plugins of its run, without knowing which they are.

def mgk_merge(model, adapter, proposal, spec):
others = peers()
report = others.merge(model, adapter, proposal, others.spec("merge", {"type": "exact"}))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from mgk_core.contract.adapter import Adapter
from mgk_core.contract.bundle import Bundle, PhaseData, Probe, Score
from mgk_core.contract.outcome import MergeReport, Proposal
from mgk_core.contract.specs import Slot, Spec

if TYPE_CHECKING:
    from mgk_core.contract.context import PhaseContext


class Peers(Protocol):
    """The plugins that take part in this run. Each method calls the hook of the same name."""

    def spec(self, slot: Slot, table: Mapping[str, Any]) -> Spec:
        """Return the specification of a table with a ``type``, checked as one in a file is.

        :raises ConfigError: an unknown type or key, or a bad value; all problems at once
        """

    def build_model(self, spec: Spec, device: torch.device) -> Bundle:
        """Build or load a base model."""

    def load_data(self, spec: Spec, bundle: Bundle) -> PhaseData:
        """Read data and probes."""

    def attach_adapter(self, model: nn.Module, spec: Spec, name: str) -> Adapter:
        """Attach a new adapter."""

    def make_optimizer(self, adapter: Adapter, spec: Spec) -> torch.optim.Optimizer:
        """Make an optimizer."""

    def evaluate(self, ctx: PhaseContext, probe: Probe) -> Score:
        """Measure one probe."""

    def merge(
        self, model: nn.Module, adapter: Adapter, proposal: Proposal, spec: Spec
    ) -> MergeReport:
        """Merge an adapter by the rule of ``spec``; the adapter stays attached."""


_current: ContextVar[Peers | None] = ContextVar("mgk_peers", default=None)


def peers() -> Peers:
    """Return the plugins of the run whose hook is being called.

    Take it inside the hook and keep it for a loss term or an observer, which run later.

    :raises RuntimeError: no hook is being called
    """
    found = _current.get()
    if found is None:
        raise RuntimeError(
            "peers() was called outside of a hook; call it in the hook and keep what it returns"
        )
    return found


@contextmanager
def answering(peers: Peers) -> Iterator[None]:
    """Make ``peers`` what `peers` returns inside the block. For whoever calls hooks."""
    token = _current.set(peers)
    try:
        yield
    finally:
        _current.reset(token)


__all__ = ["Peers", "peers"]

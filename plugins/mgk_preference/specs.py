"""Configuration of what a phase minimises (table ``loss``)."""

from __future__ import annotations

from attrs import frozen

from mgk_core.contract.specs import LossSpec


@frozen(kw_only=True)
class LikelihoodSpec(LossSpec):
    """The base's own loss: of a language model, the likelihood of what is learned."""

"""The keys of the adapter types ``peft:*``."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from mgk_core.contract.specs import Spec, option


@frozen(kw_only=True)
class PeftSpec(Spec):
    """An adapter of the PEFT library: ``peft:`` and the name of any of its tuners that can merge."""

    targets: tuple[str, ...] = option(
        ("all-linear",),
        help="modules: globs, names or their last parts, 're:' regular expressions, 'all-linear'",
    )
    exclude: tuple[str, ...] = option(
        (), help="modules to skip even if targets match them; same patterns"
    )
    options: dict[str, Any] = option(
        {}, help="fields of PEFT's configuration class of this tuner (r, lora_alpha …)"
    )

    def __attrs_post_init__(self) -> None:
        """Hold the options to PEFT's own class, so that a wrong one is found before anything runs."""
        from mgk_peft.library import make_config

        make_config(self, "")

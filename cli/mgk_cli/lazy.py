"""A group that imports a command only when it is run, so that ``--help`` is fast."""

from __future__ import annotations

import ast
import difflib
import importlib
import importlib.metadata
import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

GROUP = "mgk.commands"


class Command(click.Command):
    """A command with ``--debug``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.params.append(debug_option())


def debug_option() -> click.Option:
    """Return ``--debug``. It is only listed here; `mgk_cli.main.invoke` reads it from any position."""
    return click.Option(
        ["--debug"], is_flag=True, expose_value=False, help="Show tracebacks."
    )


class LazyGroup(click.Group):
    """A group that knows its commands by name and short help, and plugins' commands by entry point."""

    def __init__(
        self, *args: Any, own: Mapping[str, str], package: str, **kwargs: Any
    ) -> None:
        """:param own: name → short help; each is imported from ``package`` under its name."""
        super().__init__(*args, **kwargs)
        self.own, self.package = dict(own), package

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return all names: built-in commands in order, then those of plugins."""
        return [*self.own, *(n for n in foreign() if n not in self.own)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name in self.own:
            module = importlib.import_module(
                f"{self.package}.{cmd_name.replace('-', '_')}"
            )
            found: click.Command = module.command
            return found
        return load_foreign(cmd_name) if cmd_name in foreign() else None

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        """Find the command; for an unknown one, suggest the closest names."""
        if args and self.get_command(ctx, args[0]) is None:
            near = difflib.get_close_matches(
                args[0], self.list_commands(ctx), n=3, cutoff=0.5
            )
            hint = (
                f"; did you mean {' or '.join(repr(n) for n in near)}?" if near else ""
            )
            raise click.UsageError(f"no such command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(
        self, ctx: click.Context, formatter: click.HelpFormatter
    ) -> None:
        """List the commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(self.own.items()))
        others = {n: owner for n, owner in foreign().items() if n not in self.own}
        if others:
            with formatter.section("Plugin commands"):
                rows = [
                    (n, _summary(n) or f"from {owner}") for n, owner in others.items()
                ]
                formatter.write_dl(rows)


def foreign() -> dict[str, str]:
    """Return plugin commands: name → the package it comes from."""
    points = importlib.metadata.entry_points(group=GROUP)
    return {
        p.name: f"{p.dist.name} {p.dist.version}" if p.dist else "?"
        for p in sorted(points, key=lambda p: p.name)
    }


def _summary(name: str) -> str | None:
    """Return the first line of a plugin command's docstring, read from its source: nothing is imported.

    A plugin's module may import torch, or fail; help must do neither.
    """
    point = next(
        p for p in importlib.metadata.entry_points(group=GROUP) if p.name == name
    )
    top, *rest = point.module.split(".")
    try:
        spec = importlib.util.find_spec(top)
        folders = spec.submodule_search_locations if spec is not None else None
        source = (
            Path(next(iter(folders or ())), *rest).with_suffix(".py").read_text("utf-8")
        )
        functions = [
            n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)
        ]
    except (ImportError, OSError, StopIteration, SyntaxError, ValueError):
        return None
    text = next((ast.get_docstring(f) for f in functions if f.name == point.attr), None)
    return text.splitlines()[0] if text else None


def load_foreign(name: str) -> click.Command:
    """Import a plugin's command; a `PluginError` names the package and the reason."""
    from mgk_core.config.catalog import entries
    from mgk_core.contract.errors import PluginError

    entry = next(e for e in entries(GROUP) if e.name == name)
    loaded = entry.load()
    if not isinstance(loaded, click.Command):
        owner = f"{entry.distribution} {entry.version}"
        raise PluginError(
            name,
            f"command {name!r} of {owner}: expected a click command, got {type(loaded).__name__}",
        )
    return loaded

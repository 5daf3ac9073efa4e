"""The command ``mgk recipes``."""

from __future__ import annotations

import json

import click

from mgk_phases.recipes import find, names


@click.group(
    invoke_without_command=True, epilog="Example: mgk recipes show sft > my.toml"
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@click.pass_context
def recipes(ctx: click.Context, as_json: bool) -> None:  # noqa: FBT001 - click passes by name
    """List configurations to start from, or show one of them."""
    if ctx.invoked_subcommand is not None:
        return
    found = [find(name) for name in names()]
    if as_json:
        for recipe in found:
            click.echo(json.dumps({"name": recipe.name, "title": recipe.title}))
        return
    width = max(len(recipe.name) for recipe in found)
    for recipe in found:
        click.echo(f"{recipe.name:<{width}}  {recipe.title}")
    click.echo("\nWrite one to a file with: mgk recipes show NAME > my.toml")


@recipes.command(epilog="Example: mgk recipes show domain-adaptation > my.toml")
@click.argument("name")
def show(name: str) -> None:
    """Print a recipe as TOML, to edit and run."""
    click.echo(find(name).text, nl=False)

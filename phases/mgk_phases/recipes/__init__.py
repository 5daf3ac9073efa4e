"""Recipes: whole configurations to start from, one TOML file each."""

from __future__ import annotations

import tomllib
from pathlib import Path

from attrs import frozen

from mgk_core.contract.errors import InputError, nearest

FOLDER = Path(__file__).parent


@frozen
class Recipe:
    """One recipe. title: what it does. text: the file, to be edited."""

    name: str
    title: str
    text: str


def names() -> list[str]:
    """Return the names of all recipes, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def find(name: str) -> Recipe:
    """Return one recipe; `InputError` offers the nearest names."""
    if name not in names():
        raise InputError(f"unknown recipe {name!r}{nearest(name, names())}")
    text = (FOLDER / f"{name}.toml").read_text(encoding="utf-8")
    heading = text.split("\n", 1)[0].removeprefix("#").strip()
    title = tomllib.loads(text).get("title", heading)
    return Recipe(name, title, text)

"""Writing a new plugin as a complete distribution, whose own tests pass at once."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from mgk_core.contract.errors import InputError, nearest
from mgk_core.contract.hookspecs import HOOK_API_VERSION
from mgk_core.host.manager import load_plugins
from mgk_core.record.store import Store, put_text
from mgk_core.run.reopen import reserved

KINDS = ("adapter",)
_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_SUFFIX = ".tmpl"


def write_plugin(kind: str, name: str, directory: Path | None = None) -> list[Path]:
    """Write the distribution ``mgk-NAME``; return its files.

    :param kind: one of `KINDS`
    :param name: of the plugin and of its type: small letters, digits and single hyphens; a ``mgk-`` before it, as
        distributions have, is no part of it
    :param directory: default: ``mgk-NAME`` here
    :raises InputError: the name cannot be one, or is taken; the directory is in use
    """
    if kind not in KINDS:
        raise InputError(f"kind {kind!r}: no template{nearest(kind, KINDS)}")
    name = plain_name(name)
    _check(kind, name)
    out = directory or Path(f"mgk-{name}")
    words = {
        "NAME": name,
        "MODULE": module_of(name),
        "CLASS": class_of(name),
        "API": str(HOOK_API_VERSION),
    }
    contents = {_place(path, words): _filled(text, words) for path, text in _templates(kind)}

    def produce(where: Path) -> None:
        for place, text in contents.items():
            (where / place).parent.mkdir(parents=True, exist_ok=True)
            put_text(where / place, text)

    with reserved(out, "--dir"):
        Store(out.absolute().parent).write_folder(out.name, produce)
    return [out / place for place in sorted(contents)]


def plain_name(name: str) -> str:
    """Return the plugin's name, given its own or its distribution's: ``mgk-mine`` → ``mine``."""
    return name.removeprefix("mgk-")


def module_of(name: str) -> str:
    """Return the import name: ``my-rule`` → ``mgk_my_rule``."""
    return f"mgk_{name.replace('-', '_')}"


def class_of(name: str) -> str:
    """Return the beginning of class names: ``my-rule`` → ``MyRule``."""
    return "".join(part.capitalize() for part in name.split("-"))


def _check(kind: str, name: str) -> None:
    """Refuse a name that is none, or that another plugin has."""
    if keyword.iskeyword(name):
        raise InputError(
            f"name {name!r}: is a word of Python's own; choose another, such as my-{name}"
        )
    if not _NAME.fullmatch(name) or len(name) > 40:
        raise InputError(
            f"name {name!r}: expected at most 40 small letters, digits and single hyphens, beginning with a letter,"
            " such as my-adapter"
        )
    plugins = load_plugins()
    for claim_ in plugins.registry:
        if (claim_.slot, claim_.type) == (kind, name):
            raise InputError(
                f"name {name!r}: {kind} type {name!r} is claimed by the plugin {claim_.plugin!r}; choose another"
            )
    if any(i.name == name for i in plugins.infos):
        raise InputError(f"name {name!r}: a plugin of that name is installed; choose another")


def _templates(kind: str) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of every template file of a kind."""
    yield from _below(files("mgk_core.tools") / "scaffolds" / kind, "")


def _below(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            yield from _below(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            yield prefix + entry.name.removesuffix(_SUFFIX), entry.read_text(encoding="utf-8")


def _place(path: str, words: dict[str, str]) -> str:
    return re.sub(r"(^|/)module/", rf"\1{words['MODULE']}/", path).replace(
        "test_module", f"test_{words['MODULE']}"
    )


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda found: words[found[1]], text)

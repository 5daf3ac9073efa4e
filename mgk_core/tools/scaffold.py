"""Writing a new plugin as a complete distribution, whose own tests pass at once."""

from __future__ import annotations

import keyword
import re
import tomllib
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

from attrs import frozen

from mgk_core.config.catalog import PIPELINES, entries
from mgk_core.contract.errors import InputError, nearest
from mgk_core.contract.hookspecs import HOOK_API_VERSION
from mgk_core.host.manager import GROUP, load_plugins
from mgk_core.record.store import Store, put_text
from mgk_core.run.reopen import reserved

_NAME = re.compile(r"[a-z][a-z0-9]*(?:-[a-z0-9]+)*")
_SUFFIX = ".tmpl"
_COMMON = "common"


@frozen
class Kind:
    """One kind of plugin that can be written; its templates are in ``scaffolds/NAME``.

    summary: what it is, with ``@NAME@``. start: what the template does, and where to change it.
    run: the options of a run with it. slot: where it claims its name, if it does. check: whether
    ``mgk check-plugin`` has tests for it.
    """

    name: str
    summary: str
    start: str
    run: str = ""
    slot: str | None = None
    check: bool = True
    group: str = GROUP
    entry: str = "plugin"


def kinds() -> dict[str, Kind]:
    """Return every kind by name, in the order of ``scaffolds/kinds.toml``."""
    table = tomllib.loads((_folder() / "kinds.toml").read_text(encoding="utf-8"))
    return {name: Kind(name, **options) for name, options in table.items()}


def write_plugin(kind: str, name: str, directory: Path | None = None) -> list[Path]:
    """Write the distribution ``mgk-NAME``; return its files.

    :param kind: one of `kinds`
    :param name: of the plugin and of its type: lower-case letters, digits and single hyphens; a
        leading ``mgk-``, as in the names of distributions, is dropped
    :param directory: default: ``mgk-NAME`` here
    :raises InputError: the name is not valid or is taken; the directory is in use
    """
    known = kinds()
    if kind not in known:
        raise InputError(f"kind {kind!r}: no template{nearest(kind, known)}")
    name = plain_name(name)
    _check(known[kind], name)
    out = directory or Path(f"mgk-{name}")
    words = _words(known[kind], name)
    contents = {
        _place(path, words): _filled(text, words) for path, text in _templates(kind)
    }

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


def _words(kind: Kind, name: str) -> dict[str, str]:
    """Return placeholder → text; the kind's own texts may hold placeholders themselves."""
    plain = {
        "NAME": name,
        "MODULE": module_of(name),
        "CLASS": class_of(name),
        "API": str(HOOK_API_VERSION),
        "GROUP": kind.group,
        "ENTRY": kind.entry,
    }
    check = f"mgk check-plugin {name}" if kind.check else "mgk plugins"
    texts = {
        "SUMMARY": kind.summary,
        "START": kind.start,
        "RUN": kind.run,
        "CHECK": check,
    }
    return plain | {key: _filled(text, plain) for key, text in texts.items()}


def _check(kind: Kind, name: str) -> None:
    """Refuse a name that is not valid, or that another plugin has."""
    if keyword.iskeyword(name):
        raise InputError(
            f"name {name!r}: is a keyword of Python; choose another, such as my-{name}"
        )
    if not _NAME.fullmatch(name) or len(name) > 40:
        raise InputError(
            f"name {name!r}: expected at most 40 small letters, digits and single hyphens, beginning with a letter,"
            " such as my-adapter"
        )
    plugins = load_plugins()
    for claim in plugins.registry:
        if (claim.slot, claim.type) == (kind.slot, name):
            raise InputError(
                f"name {name!r}: {kind.slot} type {name!r} is claimed by the plugin {claim.plugin!r}; choose another"
            )
    if any(i.name == name for i in plugins.infos):
        raise InputError(
            f"name {name!r}: a plugin of that name is installed; choose another"
        )
    if kind.group == PIPELINES and any(e.name == name for e in entries(PIPELINES)):
        raise InputError(
            f"name {name!r}: a pipeline of that name is installed; choose another"
        )


def _folder() -> Traversable:
    return files("mgk_core.tools") / "scaffolds"


def _templates(kind: str) -> Iterator[tuple[str, str]]:
    """Yield (path, text) of the template files that all kinds share, then of the kind's own."""
    yield from _below(_folder() / _COMMON, "")
    yield from _below(_folder() / kind, "")


def _below(folder: Traversable, prefix: str) -> Iterator[tuple[str, str]]:
    for entry in sorted(folder.iterdir(), key=lambda e: e.name):
        if entry.is_dir():
            yield from _below(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            yield (
                prefix + entry.name.removesuffix(_SUFFIX),
                entry.read_text(encoding="utf-8"),
            )


def _place(path: str, words: dict[str, str]) -> str:
    inside = re.sub(r"(^|/)module/", rf"\1{words['MODULE']}/", path)
    return inside.replace("test_module", f"test_{words['MODULE']}")


def _filled(text: str, words: dict[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda found: words.get(found[1], found[0]), text)

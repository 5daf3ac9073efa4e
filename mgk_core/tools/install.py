"""Installing and removing plugins: pip underneath, for distributions named ``mgk-NAME``."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import frozen

from mgk_core.contract.errors import EnvironmentFault, InputError, nearest
from mgk_core.contract.progress import activity
from mgk_core.host.manager import GROUP
from mgk_core.tools.scaffold import plain_name

_NAME = re.compile(r"(?P<name>[a-z][a-z0-9-]{0,39})(?P<version>==[0-9][\w.+!]*)?")
_FILE = re.compile(
    r"(?P<name>mgk[-_][A-Za-z0-9_.-]+?)-(?P<version>\d[\w.+!]*)(?:-.+\.whl|\.tar\.gz)"
)


@frozen(order=True)
class Available:
    """A distribution in an index directory. installed: its version here, None where it is not."""

    name: str
    version: str
    installed: str | None = None


def install(name: str, index: str | None = None) -> tuple[str, ...]:
    """Install ``mgk-NAME``; return the plugins that it registers, which may be none.

    :param name: the plugin's or the distribution's name, with ``==VERSION`` if need be
    :param index: a directory of wheels, used without network, or the URL of a package index
    :raises InputError: the name is not valid, or the index directory has no such distribution
    :raises EnvironmentFault: pip failed; its output is in the message
    """
    distribution, version = _distribution(name)
    if index is not None and Path(index).is_dir():
        known = sorted({a.name for a in available(Path(index))})
        if distribution not in known:
            raise InputError(
                f"{index}: no distribution {distribution}{nearest(distribution, known)}"
            )
    _pip(["install", *_where(index), distribution + version])
    return _plugins_of(distribution)


def uninstall(name: str) -> str:
    """Remove ``mgk-NAME``; return the version that was removed.

    :raises InputError: it is not installed
    """
    distribution, _ = _distribution(name)
    version = _installed(distribution)
    if version is None:
        others = [
            d
            for d in map(_name_of, importlib.metadata.distributions())
            if d.startswith("mgk-")
        ]
        raise InputError(
            f"{distribution} is not installed{nearest(distribution, others)}"
        )
    _pip(["uninstall", "--yes", distribution])
    return version


def available(index: Path) -> list[Available]:
    """Return the distributions named ``mgk-*`` in a directory of wheels and source archives."""
    if not index.is_dir():
        raise InputError(
            f"{index}: expected a directory of wheels; package indexes have no list of mgk-* to ask for"
        )
    return sorted(_found_in(index))


def _found_in(index: Path) -> Iterator[Available]:
    for path in index.iterdir():
        if found := _FILE.fullmatch(path.name):
            name = _normal(found["name"])
            yield Available(name, found["version"], _installed(name))


def _distribution(name: str) -> tuple[str, str]:
    """Return (distribution, ``==VERSION`` or nothing)."""
    found = _NAME.fullmatch(plain_name(name))
    if found is None:
        raise InputError(
            f"name {name!r}: expected a plugin's name, such as my-adapter or my-adapter==1.2"
        )
    return f"mgk-{found['name']}", found["version"] or ""


def _where(index: str | None) -> list[str]:
    if index is None:
        return []
    if Path(index).is_dir():
        return ["--no-index", "--find-links", index]
    if not index.startswith(("https://", "http://")):
        raise InputError(
            f"{index}: expected a directory of wheels, or the URL of a package index"
        )
    return ["--index-url", index]


def _pip(arguments: Sequence[str]) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "--no-input",
        *arguments,
    ]
    with activity(f"pip {arguments[0]}"):
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - names are checked
    if done.returncode != 0:
        raise EnvironmentFault(
            f"pip {arguments[0]} failed: {(done.stderr or done.stdout).strip()}"
        )
    importlib.invalidate_caches()


def _plugins_of(distribution: str) -> tuple[str, ...]:
    try:
        points = importlib.metadata.distribution(distribution).entry_points
    except importlib.metadata.PackageNotFoundError:
        return ()
    return tuple(sorted(p.name for p in points if p.group == GROUP))


def _installed(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _name_of(distribution: importlib.metadata.Distribution) -> str:
    return _normal(distribution.metadata["Name"] or "")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()

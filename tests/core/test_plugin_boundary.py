"""What a plugin may import: the public names of contract, model and testing, all of them documented."""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest

import mgk
import mgk_core.contract
import mgk_core.model
import mgk_core.testing

ROOT = Path(__file__).parents[2]
PUBLIC = [
    f"{package.__name__}.{module.name}"
    for package in (mgk_core.contract, mgk_core.model)
    for module in pkgutil.iter_modules(package.__path__)
]
PAGE = (ROOT / "docs/reference/python-api.md").read_text(encoding="utf-8")


def sections():
    """Return module → the names that have a heading in its section of the page."""
    found, names = {}, set()
    for line in PAGE.splitlines():
        if line.startswith("## "):
            names = found.setdefault(line[3:], set())
        elif line.startswith("### "):
            names.add(line[4:])
    return found


@pytest.mark.parametrize("module", PUBLIC)
def test_a_public_module_lists_names_that_are_its_own(module):
    """Each name of `__all__` exists once; what knows where it was defined, was defined here."""
    home = importlib.import_module(module)
    assert len(set(home.__all__)) == len(home.__all__)
    for name in home.__all__:
        value = getattr(home, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__ in (module, "typing")


def test_the_page_documents_every_public_name_and_nothing_else():
    """python-api.md has a heading for each public name, in its module's section, and no other."""
    expected = {m: set(importlib.import_module(m).__all__) for m in PUBLIC}
    expected["mgk"] = set(mgk.__all__) - {"__version__"}
    expected["mgk_core.testing"] = set(mgk_core.testing.__all__)
    assert sections() == expected


def imported(folder):
    """Yield (file, module, name) of everything that files below a folder import from a public module."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in PUBLIC:
                for alias in node.names:
                    yield path.relative_to(ROOT), node.module, alias.name


@pytest.mark.parametrize("folder", ["plugins", "examples"])
def test_plugins_import_public_names_only(folder):
    """A name that plugins import from contract or model is in that module's `__all__`."""
    private = [
        f"{path}: {module}.{name}"
        for path, module, name in imported(folder)
        if name not in importlib.import_module(module).__all__
    ]
    assert private == []


def test_examples_import_public_modules_only():
    """An example, its tests included, imports `mgk` and the public rooms."""
    rooms = ("mgk_core.contract", "mgk_core.model", "mgk_core.testing")
    for path in sorted((ROOT / "examples").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                "mgk_core"
            ):
                assert node.module.startswith(rooms), (
                    f"{path}:{node.lineno}: {node.module}"
                )

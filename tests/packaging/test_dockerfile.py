"""The image has what an installation needs."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_it_copies_every_package_and_nothing_that_is_not_there():
    """Each package of the wheel is below a copied path, and the ignore file lets it in."""
    copied = {
        source
        for line in re.findall(r"^COPY (.+)$", TEXT, re.MULTILINE)
        for source in line.split()[:-1]
    }
    assert all((ROOT / source).exists() for source in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    packages = project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    assert {package.split("/")[0] for package in packages} <= copied
    assert {
        project["project"]["readme"],
        *project["project"]["license-files"],
    } <= copied
    allowed = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in allowed if line.startswith("!")} == copied


def test_it_installs_the_locked_versions():
    """torch's is the one that make installs, and Python's the oldest that is supported."""
    (torch,) = set(
        re.findall(r"torch==\S+", (ROOT / "Makefile").read_text(encoding="utf-8"))
    )
    assert torch in TEXT
    assert "--require-hashes -r requirements/run.txt" in TEXT
    assert "FROM python:3.11" in TEXT

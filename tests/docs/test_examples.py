"""Third-party distributions: built, installed into a fresh environment beside mgk's own wheel, and run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ("mgk-vera", "mgk-drug-safety")
SMALL = [
    "base.id=tiny-gemma", "defaults.train.steps=2", "phases.plain_text.train.steps=2", "phases.dictionary.train.steps=2",
    "phases.mcq.train.steps=2", "phases.drug_safety.train.steps=2", "defaults.evaluate.limit=6", "run.threads=1",
    "defaults.gate.min-gain=false", "phases.drug_safety.gate.min-gain=false", "phases.drug_safety.gate.max-drop=false",
    "phases.drug_safety.recover.keep-apart=false",
]  # fmt: skip


def call(command, *, where, environment, seconds=600):
    done = subprocess.run(
        command, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=seconds, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]
    return done.stdout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    """Build the three wheels and install them into an environment that sees mgk's libraries but not the source tree.

    Nothing is fetched: the libraries come from this environment, through one .pth line, and mgk's own
    editable install is kept out.
    """
    where = tmp_path_factory.mktemp("fresh")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environment.setdefault("MGK_CACHE", str(where / "cache"))
    for source in (ROOT, *(ROOT / "examples" / name for name in EXAMPLES)):
        build = [
            sys.executable,
            "-m",
            "build",
            "--wheel",
            "--no-isolation",
            "--outdir",
            str(where / "dist"),
            str(source),
        ]
        call(build, where=where, environment=environment)
    call(
        [sys.executable, "-m", "venv", "--without-pip", str(where / "venv")],
        where=where,
        environment=environment,
    )
    python = str(where / "venv" / "bin" / "python")
    site = next((where / "venv" / "lib").glob("python*")) / "site-packages"
    wheels = [str(p) for p in (where / "dist").glob("*.whl")]
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "-q",
        "--no-deps",
        *wheels,
    ]
    call(install, where=where, environment=environment)
    libraries = where / "libraries"
    libraries.mkdir()
    for path in sorted(Path(p) for p in sys.path if p.endswith("site-packages")):
        for entry in path.iterdir():
            if "mgk" not in entry.name and not (libraries / entry.name).exists():
                (libraries / entry.name).symlink_to(entry)
    (site / "libraries.pth").write_text(f"{libraries}\n")
    return where, python, environment


@pytest.mark.slow
def test_the_environment_is_fresh(fresh):
    """mgk and the examples come from their wheels, not from the source tree."""
    where, python, environment = fresh
    code = "import mgk_core, mgk_vera, mgk_drug_safety as d; print(mgk_core.__file__, mgk_vera.__file__, d.__file__)"
    found = call([python, "-c", code], where=where, environment=environment)
    assert found.count(str(where / "venv")) == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", EXAMPLES)
def test_the_tests_of_an_example_pass(fresh, name, tmp_path):
    """Each distribution's own tests pass where it is installed."""
    _, python, environment = fresh
    tests = ROOT / "examples" / name
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        str(tests / "pyproject.toml"),
        str(tests / "tests"),
    ]
    assert "passed" in call(command, where=tmp_path, environment=environment)


@pytest.mark.slow
def test_a_pipeline_runs_with_both(fresh, tmp_path):
    """The shipped pipeline runs with the foreign phase in its place and the foreign adapter in every phase."""
    where, _, environment = fresh
    config = tmp_path / "safe.toml"
    config.write_text(
        'extends = "korean-medical"\n[defaults.adapter]\ntype = "vera"\nrank = 16\n[phases.drug_safety]\nuse = "drug-safety"\n'
    )
    sets = [part for value in SMALL for part in ("--set", value)]
    command = [
        str(where / "venv" / "bin" / "mgk"),
        "run",
        "--config",
        str(config),
        "--out",
        "run",
        "--quiet",
        *sets,
    ]
    call(command, where=tmp_path, environment=environment)
    ledger = json.loads((tmp_path / "run" / "ledger.json").read_text())
    assert [(p["phase"], p["result"]) for p in ledger["phases"]] == [
        ("plain_text", "committed"), ("dictionary", "committed"), ("drug_safety", "committed"), ("mcq", "committed"),
    ]  # fmt: skip
    adapter = (
        tmp_path / "run" / "phases" / "2-drug_safety" / "adapter" / "state.safetensors"
    )
    assert b"projections/a" in adapter.read_bytes()[:200_000]

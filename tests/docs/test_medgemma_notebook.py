"""The page that maps MedGemma's notebook: its code makes the data, its TOML plans and runs on a tiny base."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("PIL", reason="pip install 'mgk[vision]'")

from tiny_medgemma import draw, save_tiny_medgemma

from mgk_core.config.resolve import load_tree
from mgk_core.run.runner import run_pipeline
from mgk_core.run.setup import prepare
from mgk_core.tools.plan import make_plan

PAGE = Path(__file__).parents[2] / "docs" / "how-to" / "medgemma-notebook.md"
SMALL = {
    "base.quantize": "none",
    "phases.tissue.merge.type": "exact",
    "base.compute": "float32",
    "run.threads": 1,
}


def block(language):
    return re.search(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The page's blocks, run on drawn pictures of three classes."""
    path = tmp_path_factory.mktemp("notebook")
    for i, name in enumerate(("adipose", "mucus", "tumor")):
        (path / "tissue" / name).mkdir(parents=True)
        for j in range(4):
            draw(path / "tissue" / name / f"{j}.png", 60 * i + 5 * j + 10)
    (path / "make.py").write_text(block("python"))
    subprocess.run([sys.executable, "make.py"], cwd=path, check=True, timeout=60)
    toml = re.search(
        r"medgemma\.toml -->\n```toml\n(.*?)```", PAGE.read_text(), re.DOTALL
    )
    (path / "medgemma.toml").write_text(toml[1])
    save_tiny_medgemma(path / "base")
    return path


def test_the_configuration_plans_on_a_tiny_base(folder, monkeypatch):
    """Every line of the TOML is read; data, adapters and probes are those that the page names."""
    monkeypatch.chdir(folder)
    sets = {**SMALL, "base.id": str(folder / "base")}
    plan = make_plan(prepare(load_tree(file="medgemma.toml", overrides=sets)))
    (phase,) = plan.phases
    assert (phase.examples, phase.adapter) == (10, "stack")
    names = {p.name for p in (*phase.probes, *plan.probes)}
    assert {"image-chat", "image-chat-exact-match", "base-text"} <= names


def test_the_configuration_as_written_resolves(folder):
    """Without any change the page's TOML is a valid configuration, quantized base and all."""
    config = prepare(load_tree(file=folder / "medgemma.toml")).resolved.config
    assert (config.base.id, config.base.quantize) == ("google/medgemma-4b-it", "nf4")
    assert config.phases[0].merge.type == "original"


@pytest.mark.slow
@pytest.mark.parametrize("quantized", [False, True])
def test_the_configuration_runs_on_a_tiny_base(folder, monkeypatch, quantized):
    """Embeddings and a LoRA are trained on pictures and merged; accuracy is measured before and after."""
    monkeypatch.chdir(folder)
    sets = {**SMALL, "base.id": str(folder / "base")}
    if quantized:
        pytest.importorskip("bitsandbytes", reason="pip install 'mgk[quantized]'")
        del sets["base.quantize"], sets["phases.tissue.merge.type"]
    out = folder / f"run-{quantized}"
    run_pipeline(None, out=out, config="medgemma.toml", overrides=sets)
    table = json.loads((out / "retention.json").read_text())
    names = [p["name"] for p in table["probes"]]
    scores = [row[names.index("image-chat-exact-match")] for row in table["R"]]
    assert None not in (scores[0], scores[-1])
    assert list((out / "model").glob("*processor_config.json"))

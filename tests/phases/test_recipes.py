"""Recipes: each is a configuration that parses, and that runs on a tiny base with small files."""

import importlib
import json
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from mgk_cli.main import cli, invoke
from mgk_core.config.resolve import load_tree, resolve
from mgk_core.contract.errors import InputError
from mgk_core.host.manager import load_plugins
from mgk_hf.tiny import tiny_config
from mgk_phases.recipes import find, names
from mgk_phases.recipes.command import recipes

WORDS = [
    "혈압",
    "혈당",
    "심장",
    "콩팥",
    "기관지",
    "관절",
    "위장",
    "뇌파",
    "백내장",
    "빈혈",
    "황달",
    "부종",
]
TEXTS = [
    f"{w}에 대한 글이다. {w}의 병은 여러 가지이고, {w}를 먼저 살핀다." for w in WORDS
]
QUESTIONS = [(f"{w}에서 먼저 살필 것은 무엇인가?", f"{w}이다.") for w in WORDS]
SMALL = (
    "base.id=tiny-gemma",
    "base.dtype=auto",
    "defaults.train.steps=2",
    "defaults.train.batch_size=2",
    "defaults.train.micro_batch=1",
    "defaults.evaluate.limit=4",
    "run.threads=1",
)
OWN = {
    "korean-vocabulary": (
        "base.new_tokens_count=8",
        'phases.ends.adapter.targets=["layers.0", "layers.3"]',
    ),
    "korean-medical": (
        "defaults.gate.min-gain=false",
        *(f"phases.{p}.train.steps=2" for p in ("plain_text", "dictionary", "mcq")),
    ),
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    """The files that the recipes name, small ones, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    (data / "corpus").mkdir(parents=True)

    def lines(name, rows):
        text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows)
        (data / name).write_text(text, encoding="utf-8")

    (data / "corpus" / "a.txt").write_text("\n\n".join(TEXTS), encoding="utf-8")
    lines("instructions.jsonl", [{"instruction": q, "output": a} for q, a in QUESTIONS])
    lines("chat.jsonl", [{"prompt": q, "completion": a} for q, a in QUESTIONS])
    terms = [{"ko": f"{w}의 병", "en": f"disease {i}"} for i, w in enumerate(WORDS)]
    lines("translation.jsonl", terms)
    exam = [
        {
            "question": q,
            "A": a,
            "B": "모른다",
            "C": "없다",
            "answer": "A",
            "reasoning": "까닭이다.",
        }
        for q, a in QUESTIONS
    ]
    lines("exam.jsonl", exam)
    codes = [f"A{i:02},term {i},{w}병" for i, w in enumerate(WORDS)]
    (data / "kcd.csv").write_text(
        "\n".join(["code,en,ko", *codes]) + "\n", encoding="utf-8"
    )
    labels = [
        f"{text},{'심장' if i % 2 else '다른 곳'}" for i, text in enumerate(WORDS)
    ]
    (data / "labels.csv").write_text(
        "\n".join(["text,label", *labels]), encoding="utf-8"
    )
    return tmp_path


def written(folder, name):
    """Return the file that ``mgk recipes show NAME`` prints."""
    result = CliRunner().invoke(recipes, ["show", name])
    assert result.exit_code == 0
    path = folder / "my.toml"
    path.write_text(result.output, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", names())
def test_every_recipe_parses(tmp_path, name):
    """What ``show`` prints is a whole configuration that the installed plugins understand."""
    resolved = resolve(load_tree(file=written(tmp_path, name)), load_plugins().registry)
    assert resolved.config.name == name
    assert resolved.config.phases


def test_recipes_are_listed_and_named(tmp_path):
    """The list has each name with its title, as text and as JSON; an unknown name offers near ones."""
    listed = CliRunner().invoke(recipes).output
    rows = [
        json.loads(x)
        for x in CliRunner().invoke(recipes, ["--json"]).output.splitlines()
    ]
    assert [r["name"] for r in rows] == names()
    assert all(f"{r['name']} " in listed and r["title"] in listed for r in rows)
    with pytest.raises(InputError, match="did you mean 'sft'"):
        find("sfd")


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in names() if n != "qlora-24gb"])
def test_every_recipe_plans_and_runs(files, name):
    """On a tiny base with small files, each recipe is planned, trained, merged and saved."""
    sets = [w for pair in (*SMALL, *OWN.get(name, ())) for w in ("--set", pair)]
    config = str(written(files, name))
    assert invoke(["plan", "--config", config, *sets]) == 0
    assert invoke(["run", "--config", config, "--out", "out", "--quiet", *sets]) == 0
    assert (files / "out" / "model" / "model.safetensors").is_file()


@pytest.mark.slow
def test_the_quantized_recipe_runs_on_a_quantized_base(files):
    """QLoRA's recipe: a base in nf4, merged into the full-precision weights it was quantized from."""
    sets = [w for pair in SMALL for w in ("--set", pair)]
    source = str(written(files, "sft"))
    assert invoke(["run", "--config", source, "--out", "base", "--quiet", *sets]) == 0
    sets += ["--set", "base.id=base/model"]
    config = str(written(files, "qlora-24gb"))
    assert invoke(["plan", "--config", config, *sets]) == 0
    assert invoke(["run", "--config", config, "--out", "out", "--quiet", *sets]) == 0
    assert (files / "out" / "model" / "model.safetensors").is_file()


@pytest.fixture
def figures(monkeypatch):
    """The script that counts what recipes take, which is beside the package and not in it."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("recipe_memory")


def test_each_recipe_states_its_memory():
    """Five sizes in every recipe whose adapters do not depend on the words of its data, larger ones last."""
    for name in set(names()) - {"korean-vocabulary"}:
        line = (
            find(name).text.replace("\n# ", " ").partition("GPU memory of training")[2]
        )
        found = re.findall(r"(\d+[MB]) (\d+\.?\d*)", line.partition("\n")[0])
        assert [size for size, _ in found] == ["270M", "1B", "4B", "12B", "27B"], name
        values = [float(value) for _, value in found]
        assert values == sorted(values)


@pytest.mark.slow
def test_the_stated_memory_is_what_the_script_counts(figures):
    """The figure of the smallest size is recomputed from its shapes."""
    stated = re.search(r"270M (\S+),", find("sft").text)[1]
    assert stated == f"{figures.needed('sft', '270M'):.2g}"


@pytest.mark.slow
def test_the_script_counts_as_plan_does(files, figures):
    """On a base that is small enough to load, base, adapter, gradients and optimizer are those of ``mgk plan``."""
    sets = [w for pair in SMALL for w in ("--set", pair)]
    config = str(written(files, "sft"))
    result = CliRunner().invoke(cli, ["plan", "--config", config, "--json", *sets])
    assert result.exit_code == 0
    plan = json.loads(result.stdout)
    tree = load_tree(
        file=files / "my.toml", overrides=[x for x in sets if x != "--set"]
    )
    config = resolve(tree, load_plugins().registry).config
    (phase,) = config.phases
    model = figures.shapes(tiny_config(2048), torch.float32)
    counted = figures.phase_memory(model, config.base, phase, 0)
    (planned,) = plan["phases"]
    parts = ("adapter", "gradients", "optimizer")
    assert {k: counted[k] for k in parts} == {k: planned["memory"].get(k, counted[k]) for k in parts}  # fmt: skip
    assert counted["base"] == plan["base_bytes"]

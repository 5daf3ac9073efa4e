"""Tasks of lm-evaluation-harness as probes: the figures are the harness's own, on the model that a run saved."""

import json
import sys

import attrs
import pytest
import torch

pytest.importorskip("lm_eval", reason="pip install 'mgk[lm-eval]'")

from mgk_core.config.resolve import load_tree
from mgk_core.contract.errors import ConfigError, EnvironmentFault, InputError
from mgk_core.run.runner import run_pipeline
from mgk_core.run.setup import prepare
from mgk_harness import plugin
from mgk_harness.specs import HarnessSpec
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec

CHOICE = """
task: exam
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "문제: {{{{question}}}}\\n답:"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
output_type: generate_until
test_split: test
fewshot_split: test
num_fewshot: 1
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{options[answer]}}}}"
generation_kwargs: {{until: ["은", "\\n"], max_gen_toks: 40, do_sample: false}}
metric_list:
  - {{metric: chrf, aggregation: chrf, higher_is_better: true}}
"""
LIKELIEST = """
task: likeliest
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
output_type: loglikelihood
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: " {{{{options[answer]}}}}"
metric_list:
  - {{metric: perplexity, aggregation: perplexity, higher_is_better: false}}
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: "{file}"}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list:
  - {{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}}
"""
PAIR = "group: both\ntask: [exam, second]\n"
TASKS = {
    "exam": CHOICE,
    "second": CHOICE.replace("exam", "second").replace("문제", "질문"),
    "written": WRITTEN,
    "likeliest": LIKELIEST,
    "rolling": ROLLING,
}
ORGANS = ["심장", "간", "폐", "콩팥", "위", "뇌", "눈", "귀", "비장", "췌장"]
TEXTS = [f"{name}은 몸의 기관이며 중요한 일을 한다." for name in ORGANS]
CONFIG = """
name = "small"
[base]
type = "hf"
id = "tiny-gemma"
compute = "float32"
head = "exact"
[run]
threads = 1
[defaults]
optimizer = {type = "adamw", lr = 0.01}
train = {steps = 6, batch_size = 4}
adapter = {type = "lora", rank = 4, alpha = 12, targets = ["all-linear"]}
[phases.one.data]
type = "text"
length = 32
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with tasks, their documents, and texts to train on."""
    path = tmp_path_factory.mktemp("tasks")
    rows = [
        {
            "question": f"{one}은 무엇인가",
            "options": [f"{one}의 기관", f"{two}과 뼈", "모른다"],
            "answer": i % 3,
        }
        for i, (one, two) in enumerate(
            zip(ORGANS, ORGANS[3:] + ORGANS[:3], strict=True)
        )
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    (path / "items.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, text in TASKS.items():
        content = text.format(file=path / "items.jsonl")
        (path / f"{name}.yaml").write_text(content, encoding="utf-8")
    (path / "both.yaml").write_text(PAIR, encoding="utf-8")
    texts = [json.dumps({"text": t}, ensure_ascii=False) for t in TEXTS]
    (path / "train.jsonl").write_text("\n".join(texts), encoding="utf-8")
    (path / "small.toml").write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def run(folder):
    """A run whose matrix has all tasks."""
    sets = {"phases.one.data.train": str(folder / "train.jsonl")}
    for name in TASKS:
        table = {
            "type": "lm-eval",
            "task": name,
            "include_path": str(folder),
            "limit": 8,
        }
        sets[f"probes.{name}"] = table
    run_pipeline(None, out=folder / "run", config=folder / "small.toml", overrides=sets)
    return folder / "run"


@pytest.fixture(scope="module")
def theirs(run, folder):
    """The harness's own results on RUN/model, loaded by its ``hf`` model."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    arguments = {"pretrained": str(run / "model"), "dtype": "float32"}
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(
        "hf", model_args=arguments, tasks=list(TASKS), limit=8, device="cpu",
        batch_size=2, task_manager=manager, bootstrap_iters=0, log_samples=True,
    )  # fmt: skip


def row(run):
    """Return the scores of the last row, by probe."""
    table = json.loads((run / "phases" / "0-one" / "scores.json").read_text())
    return {score["probe"]: score for score in table["scores"]}


FIGURES = {
    "exam": "acc,none",
    "written": "chrf,none",
    "likeliest": "perplexity,none",
    "rolling": "bits_per_byte,none",
}


@pytest.mark.slow
@pytest.mark.parametrize("task", FIGURES)
def test_a_probe_has_the_figure_of_the_harness(run, theirs, task):
    """Options, written answers, single continuations and whole texts score as simple_evaluate scores them."""
    score = row(run)[task]
    wanted = theirs["results"][task][FIGURES[task]]
    assert score["metric"] == f"lm-eval:{FIGURES[task].removesuffix(',none')}"
    # fp32 on both sides, summed in another order: relative errors of 1e-6 a token, of some ten tokens.
    assert score["value"] == pytest.approx(wanted, rel=1e-4)
    assert score["n"] == 8


@pytest.mark.slow
def test_a_probe_keeps_every_document(run, theirs):
    """Each document's value is the harness's own, and the further figures of the task are kept."""
    score, samples = row(run)["exam"], theirs["samples"]["exam"]
    assert score["per_item"] == [float(one["acc"]) for one in samples]
    norm = theirs["results"]["exam"]["acc_norm,none"]
    assert score["extra"]["acc_norm"] == pytest.approx(norm)
    likeliest = theirs["results"]["likeliest"]["acc,none"]
    assert row(run)["likeliest"]["extra"]["acc"] == likeliest


@pytest.mark.slow
def test_the_matrix_compares_documents_in_pairs(run):
    """Changes between rows come with a paired test, and the probes count as the base's own."""
    table = json.loads((run / "retention.json").read_text())
    change = next(c for c in table["changes"] if c["probe"] == "exam")
    assert change["test"] == "McNemar exact"
    assert {p["name"]: p["phase"] for p in table["probes"]}["exam"] == "base"
    assert table["base_measured"]


@pytest.fixture(scope="module")
def bundle():
    return build(HfSpec(type="hf", id="tiny-gemma"), torch.device("cpu"))


def spec(folder, **options):
    given = {"task": "exam", "include_path": str(folder), **options}
    return HarnessSpec(type="lm-eval", **given)


def test_hook_load_probes(folder, bundle):
    """It is called by name with the entry and the bundle; a group takes turns between its tasks."""
    (probe,) = plugin.mgk_load_probes(
        spec(folder, task="both", limit=3), "pair", bundle
    )
    assert (probe.name, probe.metric, len(probe.items)) == ("pair", "lm-eval:acc", 6)
    assert [item.task for item in probe.items[:3]] == ["exam", "second", "exam"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        # The index of all shipped tasks takes seconds.
        pytest.param(
            {"task": "exm"}, ["no task 'exm'", "exam"], marks=pytest.mark.slow
        ),
        ({"include_path": "/nowhere"}, ["include_path", "no such folder"]),
        ({"metric": "acc_nrom"}, ["acc_nrom", "acc_norm"]),
        ({"metric": "acc,strict"}, ["strict", "none"]),
        ({"chat": True}, ["chat template"]),
    ],
)
def test_what_is_wrong_is_known_before_training(folder, bundle, options, words):
    """An unknown task, folder, metric or filter is named with the nearest known one."""
    with pytest.raises(InputError) as caught:
        plugin.mgk_load_probes(spec(folder, **options), "quiz", bundle)
    assert all(word in str(caught.value) for word in ["probes.quiz", *words])


def test_a_missing_harness_names_the_extra(folder, bundle, monkeypatch):
    """Without lm-eval the entry says what to install."""
    for name in [m for m in sys.modules if m.startswith("mgk_harness.")]:
        if name not in ("mgk_harness.plugin", "mgk_harness.specs"):
            monkeypatch.delitem(sys.modules, name)
    for name in [m for m in sys.modules if m.split(".")[0] == "lm_eval"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(EnvironmentFault, match=r"mgk\[lm-eval\]"):
        plugin.mgk_load_probes(spec(folder), "quiz", bundle)


def test_an_entry_is_checked_with_the_configuration(folder):
    """A wrong phase, a missing task and a name that nothing declares are errors with their keys."""
    sets = {
        "phases.one.data.train": str(folder / "train.jsonl"),
        "probes.a": {"type": "lm-eval", "task": "exam", "phase": "on"},
        "probes.b": {"type": "lm-eval"},
        "probes.c": False,
    }
    with pytest.raises(ConfigError) as caught:
        prepare(load_tree(file=folder / "small.toml", overrides=sets))
    found = {
        problem.where.removeprefix("--set: "): problem.message
        for problem in caught.value.problems
    }
    assert set(found) == {"probes.a.phase", "probes.b.task", "probes.c"}
    assert "one" in found["probes.a.phase"]


def test_a_limit_takes_fewer_documents(folder, bundle):
    """Of a probe cut to three items, three documents are evaluated, in the same order."""
    from mgk_harness.evaluation import evaluate

    (probe,) = plugin.mgk_load_probes(spec(folder), "quiz", bundle)
    whole = evaluate(bundle, probe)
    part = evaluate(bundle, attrs.evolve(probe, items=probe.items[:3]))
    assert part.per_item == whole.per_item[:3]
    assert (part.n, whole.n) == (3, 10)


def test_the_harness_writes_nothing_to_the_terminal(folder, bundle, capfd):
    """Bars and log lines of the harness do not mix with mgk's own."""
    from mgk_harness.evaluation import evaluate

    (probe,) = plugin.mgk_load_probes(spec(folder, limit=2), "quiz", bundle)
    evaluate(bundle, probe)
    assert capfd.readouterr() == ("", "")

"""Preference phases as whole runs: through kill and resume, at a gate, refused before they begin."""

import json
import signal
import subprocess
import sys
import time

import pytest

from mgk_core.config.resolve import load_tree
from mgk_core.contract.errors import ConfigError, GateRefused
from mgk_core.record.events import Events
from mgk_core.record.journal import Journal
from mgk_core.record.store import Store
from mgk_core.run.runner import run_pipeline
from mgk_core.run.setup import open_session, prepare
from mgk_core.tools.footprint import activations
from mgk_core.tools.plan import make_plan

PROMPTS = [
    f"{word}이 무엇인가?" for word in ("혈압", "혈당", "심장", "콩팥", "관절", "위장")
]
PAIRS = [
    {"prompt": p, "chosen": f"짧은 답 {i}", "rejected": f"아주 길고 모르는 답 {i} 이다"}
    for i, p in enumerate(PROMPTS * 2)
]
LABELLED = [
    {"prompt": p["prompt"], "completion": p[key], "label": key == "chosen"}
    for p in PAIRS
    for key in ("chosen", "rejected")
]
CONFIG = """
name = "own"
base = {{ type = "hf", id = "tiny-gemma" }}
[run]
threads = 1
[phases.p]
adapter = {{ type = "lora", rank = 2, alpha = 4, dropout = 0.1, targets = ["*q_proj"] }}
optimizer = {{ type = "adamw", lr = 1e-3 }}
train = {{ steps = {steps}, batch_size = 4, micro_batch = 2, checkpoint_steps = 1, log_every = 3, eval_every = 3 }}
loss = {loss}
data = {{ type = "preference", train = "{file}", dev_share = 0.2, test_share = 0.2 }}
"""


def written(folder, rows, loss, steps=14):
    """Return the path of a configuration beside its data."""
    file, config = folder / "rows.jsonl", folder / "c.toml"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("\n".join(lines), encoding="utf-8")
    config.write_text(CONFIG.format(file=file, loss=loss, steps=steps))
    return str(config)


def process(*arguments):
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "mgk_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def losses(run):
    """Return what was logged of the steps and of dev, times aside."""
    found = []
    for line in (run / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] in {"step", "dev"}:
            keys = ("event", "step", "loss", "figures", "unit")
            found.append({k: event.get(k) for k in keys})
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rows", "loss"),
    [
        (PAIRS, '{ type = "dpo", beta = 0.3, neftune_noise_alpha = 5.0 }'),
        (LABELLED, '{ type = "kto" }'),
        (PAIRS, '{ type = "distill", likelihood_weight = 1.0, beta = 0.5 }'),
    ],
    ids=["dpo", "kto", "distill"],
)
def test_a_killed_run_resumes_to_the_same_bits(tmp_path, rows, loss):
    """Killed after a checkpoint and resumed: the same digests, losses, figures and reference."""
    config = written(tmp_path, rows, loss)
    whole, out = tmp_path / "whole", tmp_path / "out"
    done = process("run", "--config", config, "--out", str(whole), "--quiet")
    assert done.returncode == 0, done.stderr
    command = [
        sys.executable,
        "-m",
        "mgk_cli",
        "run",
        "--config",
        config,
        "--out",
        str(out),
    ]
    running = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while not list(out.glob("phases/*/checkpoint*/*")) and running.poll() is None:
        time.sleep(0.01)
    running.kill()
    assert running.wait() == -signal.SIGKILL
    resumed = process("resume", str(out), "--quiet")
    assert resumed.returncode == 0, resumed.stderr
    ledgers = [json.loads((run / "ledger.json").read_text()) for run in (whole, out)]
    assert ledgers[0]["phases"] == ledgers[1]["phases"]
    assert losses(whole) == losses(out)
    assert all(event["loss"] is not None for event in losses(whole))
    kept = [sorted(run.glob("phases/*/files/*.safetensors")) for run in (whole, out)]
    assert [p.name for p in kept[0]] == [p.name for p in kept[1]]
    for one, other in zip(*kept, strict=True):
        assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize(
    ("rows", "loss", "reason"),
    [
        (LABELLED, '{ type = "dpo" }', "kto"),
        (LABELLED, '{ type = "likelihood" }', "kto"),
        ([r for r in LABELLED if r["label"]], '{ type = "kto" }', "good and bad"),
        (PAIRS, '{ type = "distill" }', "teaches nothing"),
        (PAIRS, '{ type = "dpo", loss_type = "sigmoud" }', "did you mean 'sigmoid'"),
        (PAIRS, '{ type = "dpo", loss_type = "exo_pair" }', "label_smoothing"),
        (
            PAIRS,
            '{ type = "dpo", loss_type = "ipo", label_smoothing = 0.1 }',
            "acts on",
        ),
        (PAIRS, '{ type = "dpo", loss_weights = [1, 2] }', "loss_weights"),
        (PAIRS, '{ type = "dpp" }', "did you mean 'dpo'"),
    ],
)
def test_what_cannot_be_learned_is_refused_before_training(
    tmp_path, rows, loss, reason
):
    """`mgk plan` names the key and what to do."""
    config = written(tmp_path, rows, loss)
    with pytest.raises(ConfigError, match=reason) as caught:
        make_plan(prepare(load_tree(file=config)))
    assert "phases.p.loss" in str(caught.value)


def test_a_gate_refuses_by_the_probe(tmp_path):
    """A share of the pairs that is out of reach refuses the merge; what was scored is on record."""
    config = written(tmp_path, PAIRS, '{ type = "simpo" }', steps=2)
    gate = ["phases.p.gate.threshold.probes=['preference']"]
    gate += ["phases.p.gate.threshold.limit=1.01", "phases.p.train.eval_every=2"]
    with pytest.raises(GateRefused, match="preference"):
        run_pipeline(None, config=config, out=tmp_path / "run", overrides=gate)
    scores = json.loads((tmp_path / "run" / "retention.json").read_text())
    names = {"preference", "preference-margin", "preference-logprob"}
    assert names <= {probe["name"] for probe in scores["probes"]}
    step, dev = (e for e in losses(tmp_path / "run") if e["loss"] is not None)
    assert step["unit"] == "pairs"
    assert 0 <= step["figures"]["rewards/accuracies"] <= 1
    assert dev["event"] == "dev"


def test_the_plan_counts_both_answers(tmp_path):
    """A preference loss holds the activations of two answers where the likelihood holds one."""
    parts = []
    for loss in ('{ type = "likelihood" }', '{ type = "dpo" }'):
        prepared = prepare(load_tree(file=written(tmp_path, PAIRS, loss)))
        store = Store(tmp_path / "none")
        session = open_session(prepared, store, Journal(store), Events())
        ctx = session.context(0)
        ctx.adapter = session.hooks.attach_adapter(
            session.bundle.model, ctx.phase.adapter, "x"
        )
        parts.append(activations(session, ctx, 4))
    assert 1.5 < parts[1] / parts[0] < 4  # the rejected answers are longer

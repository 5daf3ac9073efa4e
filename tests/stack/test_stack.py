"""Several adapters in one phase, and adapters loaded from earlier runs and from PEFT."""

import json

import pytest
import torch

import mgk
from mgk_core.config.resolve import structure_spec
from mgk_core.contract.adapter import state_of
from mgk_core.contract.errors import ConfigError, InputError, Interrupted
from mgk_core.host.manager import load_plugins
from mgk_core.run.runner import resume_run, run_pipeline
from mgk_core.testing.check import check_loaded
from mgk_core.testing.laws import assert_hold
from mgk_hf.tiny import tiny_model

IDS = torch.tensor([[2, 3, 17, 5, 41, 40]])
ROWS = {"type": "rows", "ids": [3, 17, 41]}
LOW = {"type": "lora", "rank": 2, "alpha": 3.0, "targets": ["q_proj", "down_proj"]}
FULL = {"type": "full", "targets": ["layers.0.mlp.down_proj"]}


def shaken(adapter, seed=0):
    """Give every trained number of an adapter a value that is not its first one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            if parameter.requires_grad:
                noise = torch.randn(parameter.shape, generator=generator)
                parameter.add_(noise * 0.05)
    return adapter


@torch.no_grad()
def logits(model):
    """Return logits over ids with and without trained rows."""
    return model(IDS).logits


@pytest.mark.slow
def test_every_law_of_adapters_holds():
    """A LoRA and full deltas on the same weights pass every conformance test as one adapter."""
    found = check_loaded(load_plugins(), "stack")
    assert sum(r.ok is True for r in found) == 17
    assert_hold(found)


def test_members_are_active_together_and_merge_to_their_sum():
    """Rows, a LoRA and whole weights, two of them on one weight: merging one after the other gives the same model."""
    model, single = tiny_model(96), tiny_model(96)
    tables = {"table": ROWS, "low": LOW, "whole": FULL}
    stack = shaken(mgk.attach(model, "stack", adapters=tables))
    live = logits(model)
    report = mgk.merge(model, stack)
    assert report.kept == pytest.approx(1.0)
    torch.testing.assert_close(logits(model), live, rtol=0, atol=2e-5)
    assert not torch.allclose(live, logits(single), atol=1e-2)
    for name, own in tables.items():
        table = {k: v for k, v in own.items() if k != "type"}
        adapter = mgk.attach(single, own["type"], name=name, **table)
        adapter.load_state_dict(stack.members[name].state_dict())
        mgk.merge(single, adapter)
    torch.testing.assert_close(logits(single), live, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("second", "words"),
    [
        ({**LOW, "type": "dora"}, "down_proj.*more than an added delta"),
        (
            {**LOW, "targets": ["lm_head"], "tied": "untie"},
            "table.*copy of its own",
        ),
        ({**LOW, "targets": ["nowhere"]}, "adapters.low.*nowhere"),
    ],
)
def test_what_cannot_be_merged_exactly_is_refused(second, words):
    """The error names the adapter and the weight; the model is as before."""
    model = tiny_model(96)
    kinds, tied = {n: type(m) for n, m in model.named_modules()}, model.lm_head.weight
    with pytest.raises(InputError, match=words):
        mgk.attach(
            model, "stack", adapters={"table": ROWS, "whole": FULL, "low": second}
        )
    assert {n: type(m) for n, m in model.named_modules()} == kinds
    assert model.lm_head.weight is tied is model.get_input_embeddings().weight
    assert not state_of(model).adapters


def test_each_table_is_checked_where_it_is_written():
    """A wrong key inside a member is an error of the configuration, with its path."""
    registry = load_plugins().registry
    with pytest.raises(ConfigError, match=r"adapter\.adapters\.low\.rnk"):
        structure_spec(
            registry,
            "adapter",
            {"type": "stack", "adapters": {"low": {**LOW, "rnk": 3}}},
        )
    with pytest.raises(ConfigError, match="at least one"):
        structure_spec(registry, "adapter", {"type": "stack"})


CONFIG = """
name = "own"
[base]
type = "hf"
id = "tiny-gemma"
compute = "float32"
[run]
threads = 1
device = "cpu"
[defaults]
optimizer = {{type = "adamw", lr = 1e-2}}
train = {{steps = 3, batch_size = 4, log_every = 1, checkpoint_steps = 1}}
data = {{type = "text", train = "{texts}", max_length = 24, test_share = 0.25}}
[phases.both.adapter]
type = "stack"
adapters.table = {{type = "rows", ids = [20, 30, 40]}}
adapters.low = {{type = "lora", rank = 2, alpha = 4}}
{more}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Return a maker of configuration files with a phase of two adapters, and what more is given."""
    folder = tmp_path_factory.mktemp("stack")
    lines = [json.dumps({"text": f"글 {i} 하나 둘"}) for i in range(16)]
    (folder / "texts.jsonl").write_text("\n".join(lines) + "\n")

    def write(name, more=""):
        path = folder / f"{name}.toml"
        path.write_text(CONFIG.format(texts=folder / "texts.jsonl", more=more))
        return path

    return write


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """Return the directory of a finished run."""
    out = tmp_path_factory.mktemp("stack-run") / "run"
    run_pipeline(None, out=out, config=config("plain"))
    return out


def merged(run):
    """Return each phase's digest of the merged weights."""
    ledger = json.loads((run / "ledger.json").read_text())
    return [phase["merged"] for phase in ledger["phases"]]


@pytest.mark.slow
def test_a_stopped_phase_of_two_adapters_ends_in_the_same_bits(run, config, tmp_path):
    """Interrupted after its second step and resumed, with both members' numbers and the optimizer's."""

    def stop(event):
        if event["event"] == "step" and event["step"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run_pipeline(None, out=tmp_path / "run", config=config("plain"), sink=stop)
    resume_run(tmp_path / "run")
    assert merged(tmp_path / "run") == merged(run)
    assert (run / "phases/0-both/adapter/low/adapter_config.json").is_file()
    assert (run / "phases/0-both/adapter/table/adapter_config.json").is_file()


@pytest.mark.slow
def test_an_earlier_run_and_a_peft_adapter_take_part_with_weights(
    run, config, tmp_path
):
    """Both are active and frozen at their weights; what is merged is half of one, all of the other, and what was trained."""
    from safetensors.torch import load_file

    earlier = run / "phases/0-both"
    more = f"""
[phases.both.adapter.adapters.half]
type = "loaded"
path = "{earlier}"
weight = 0.5
[phases.both.adapter.adapters.peft]
type = "loaded"
path = "{earlier}/adapter/low"
"""
    (earlier / "adapter/low/state.safetensors").unlink(missing_ok=True)
    out = tmp_path / "run"
    run_pipeline(None, out=out, config=config("loaded", more))
    found = load_file(out / "phases/0-both/adapter/state.safetensors")
    kept = load_file(earlier / "adapter/state.safetensors")
    rows = "model.embed_tokens.weight/rows"
    assert torch.equal(found[f"half/table/{rows}"], kept[f"table/{rows}"] * 0.5)
    name = next(k for k in kept if k.endswith("q_proj.weight/b"))
    weight = name.removeprefix("low/").removesuffix("/b")
    assert torch.equal(found[f"half/{name}"], kept[name])
    assert torch.equal(found[f"peft/{weight}/b"], kept[name])
    start = dict(mgk.load_base("hf", id="tiny-gemma").model.named_parameters())[weight]
    end = load_file(out / "model/model.safetensors")[weight]

    def delta(state, prefix):
        return state[f"{prefix}{weight}/b"] @ state[f"{prefix}{weight}/a"] * 2

    expected = 1.5 * delta(kept, "low/") + delta(found, "low/")
    torch.testing.assert_close(end - start, expected, rtol=1e-3, atol=1e-6)
    assert delta(found, "low/").any()
    assert mgk_verifies(out)


def mgk_verifies(run):
    """Whether the run's weights can be built again from its record."""
    from mgk_core.tools.verify_run import audit, audit_weights

    found = audit(run)
    audit_weights(found)
    return found.sound


def test_what_is_no_adapter_is_named(tmp_path):
    """A directory without an adapter, and one outside a run, are errors with what was expected."""
    model = tiny_model(96)
    with pytest.raises(InputError, match="holds no adapter"):
        mgk.attach(model, "loaded", path=str(tmp_path))
    (tmp_path / "state.safetensors").touch()
    with pytest.raises(InputError, match=r"run\.toml"):
        mgk.attach(model, "loaded", path=str(tmp_path))

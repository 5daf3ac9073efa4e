"""Training each phase on weights packed anew: the full-precision master loses nothing, and what it costs is measured."""

import json

import pytest
import torch
from click.testing import CliRunner

import mgk
from mgk_cli.event_lines import EventLines
from mgk_cli.main import cli
from mgk_core.contract.adapter import base_state_dict, state_of
from mgk_core.contract.bundle import Tokens
from mgk_core.contract.errors import GateRefused, InputError, MergeError
from mgk_core.contract.outcome import Proposal
from mgk_core.contract.peers import answering
from mgk_core.host.hooks import installed_hooks
from mgk_core.model.digest import base_digest
from mgk_core.record.events import ignore
from mgk_core.record.ledger import read_ledger
from mgk_core.run.base_probe import measure_base
from mgk_core.run.rebuild import rebuild_base
from mgk_core.run.reopen import reopen
from mgk_core.run.runner import run_pipeline
from mgk_core.run.scores import load_row, measure_row
from mgk_core.run.verify_merge import outputs_on, relative_error, verify_merged
from mgk_core.tools.rebuild_model import rebuild
from mgk_core.tools.verify_run import audit, audit_weights
from mgk_hf.loading import build
from mgk_hf.packed import packed_in
from mgk_hf.quantized import dequantize, is_quantized
from mgk_hf.specs import HfSpec, UnpackSpec
from mgk_hf.unpack import merge

pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")
KINDS = pytest.mark.parametrize("kind", ["nf4", "nf4-double", "int8"])
RULES = pytest.mark.parametrize("rule", ["dequantized", "original"])
AROUND = pytest.mark.parametrize("around", ["float32", "bfloat16"])
TARGETS = (["all-linear"], ["*q_proj", "*down_proj"], ["*q_proj", "*up_proj"])
IDS = tuple(range(5, 25))


def attached(bundle, phase, size=0.02):
    """Return a phase's adapter that has learnt something, the same each time."""
    adapter = mgk.attach(
        bundle.model,
        "lora",
        name=f"p{phase}",
        rank=3,
        alpha=5.0,
        targets=TARGETS[phase],
    )
    generator = torch.Generator().manual_seed(phase)
    for parameter in adapter.parameters():
        parameter.data.add_(torch.randn(parameter.shape, generator=generator) * size)
    return adapter


def fold(bundle, adapter, rule, *, last=False, verify=None):
    """Merge as a transition does, packing anew: the adapter stays on."""
    spec = UnpackSpec(type=rule, requantize=True)
    with answering(installed_hooks()):
        return merge(bundle.model, adapter, Proposal(last=last, verify=verify), spec)


def folded(bundle, adapter, rule, **more):
    """Merge, and take the adapter off."""
    report = fold(bundle, adapter, rule, **more)
    mgk.detach(bundle.model, adapter)
    return report


def masters(bundle):
    """Return packed weight + residual by name, in float64."""
    kept = state_of(bundle.model).residuals
    return {
        p.name: dequantize(p.module).double() + kept.get(p.name, torch.zeros(()))
        for p in packed_in(bundle.model)
    }


def plain_masters(bundle):
    """The same where the weights are plain."""
    kept = state_of(bundle.model).residuals
    return {
        n: w.double() + kept.get(n, torch.zeros(()))
        for n, w in base_state_dict(bundle.model).items()
    }


@pytest.fixture
def opened(saved):
    """Return ``opened(kind)``: a packed base and a batch; ``around``: the dtype of what is not packed."""

    def make(kind, around="float32"):
        bundle = build(
            HfSpec(
                type="hf",
                id=saved("gemma3"),
                dtype=around,
                quantize=kind.removesuffix("-double"),
                double_quant=kind.endswith("-double"),
            ),
            CPU,
        )
        return bundle, bundle.pack([Tokens(IDS, IDS)])

    return make


@KINDS
@RULES
@AROUND
def test_the_master_is_that_of_the_same_merges_in_full_precision(
    opened, saved, kind, rule, around
):
    """Three phases, two of them packed anew: W + ΔW₀ + ΔW₁ + ΔW₂ but for fp32 rounding, where no adapter was too."""
    bundle, _ = opened(kind, around)
    expected = {n: w.double() for n, w in masters(bundle).items()}
    if rule == "original":
        plain = base_state_dict(build(HfSpec(type="hf", id=saved("gemma3")), CPU).model)
        expected = {n: plain[n].double() for n in expected}
    for phase in range(3):
        adapter = attached(bundle, phase)
        for name in adapter.targets():
            zero = torch.zeros(expected[name].shape)
            expected[name] += adapter.merged_weight(name, zero).double()
        folded(bundle, adapter, rule, last=phase == 2)
        assert is_quantized(bundle.model) == (phase < 2)
        found = masters(bundle) if phase < 2 else plain_masters(bundle)
        for name, weight in expected.items():
            unit = torch.finfo(torch.float32).eps * float(weight.abs().max())
            assert (
                float((found[name] - weight).abs().max()) <= 2 * (phase + 1) * unit
            ), (
                phase,
                name,
            )
            if (
                phase < 2 and name in adapter.targets()
            ):  # and the packed weight alone is far from it
                held = state_of(bundle.model).residuals[name]
                assert float(held.abs().max()) > 1000 * unit
    assert (state_of(bundle.model).residuals == {}) == (around == "float32")


@KINDS
def test_the_packed_weights_are_the_nearest_to_the_master(opened, kind):
    """What stands in the model is the master packed by bitsandbytes as the base was, and what the report says of it."""
    bundle, _ = opened(kind)
    before = {p.name: dequantize(p.module) for p in packed_in(bundle.model)}
    report = folded(bundle, attached(bundle, 1), "dequantized")
    fresh = {r.name: r for r in report.weights}
    (told,) = (w for w in report.warnings if "requantized for the next phase" in w)
    ratios = []
    for p in packed_in(bundle.model):
        if p.name not in fresh:
            assert torch.equal(dequantize(p.module), before[p.name])
            continue
        now, rest = dequantize(p.module), state_of(bundle.model).residuals[p.name]
        ratios.append(float(rest.norm() / (now + rest).norm()))
        assert fresh[p.name].dtype == kind.removesuffix("-double")
        assert fresh[p.name].max_error == float(rest.abs().max())
    assert (
        f"is {sum(ratios) / len(ratios):.3g} on average, at most {max(ratios):.3g}"
        in told
    )
    assert 0 < max(ratios) < (0.01 if kind == "int8" else 0.1)
    assert not report.exact


def test_little_of_a_small_delta_is_in_weights_that_lay_on_the_grid(opened):
    """Q(Q(W) + ΔW) gives most of a small ΔW up, Q(W + ΔW) does not: `kept` says so, and the residual has the rest."""
    kept = {}
    for rule in ("dequantized", "original"):
        bundle, _ = opened("nf4")
        report = folded(bundle, attached(bundle, 0, size=0.003), rule)
        kept[rule] = report.kept
        assert report.kept_total == pytest.approx(1, abs=1e-4)
    assert abs(kept["dequantized"]) < 0.1
    assert 0.7 < kept["original"] < 1.3


@RULES
def test_merged_is_held_against_live_before_it_is_packed(opened, rule):
    """At the moment of verifying, in each phase, the weights are plain and compute what was live."""
    bundle, batch = opened("nf4")
    for phase in range(3):
        adapter, found = attached(bundle, phase), []
        live = outputs_on(bundle, [batch])

        def verify(adapter=adapter, live=live, found=found):
            assert not is_quantized(bundle.model)
            with adapter.disabled():
                found.append(verify_merged(bundle, adapter, [batch], live, seed=0))

        report = fold(bundle, adapter, rule, last=phase == 2, verify=verify)
        assert [f.ok for f in found] == [True]
        assert not report.exact
        with adapter.disabled():  # what stands in the end is something else
            assert (
                relative_error(outputs_on(bundle, [batch]), live) > 100 * found[0].error
            )
        mgk.detach(bundle.model, adapter)


@KINDS
@RULES
@AROUND
def test_undoing_brings_packed_weights_and_residuals_back(opened, kind, rule, around):
    """After a merge, and after an error while merging: the same bits, residuals and outputs, in a second phase too."""
    bundle, batch = opened(kind, around)
    for phase in range(2):
        adapter = attached(bundle, phase)
        live, digest = outputs_on(bundle, [batch]), base_digest(bundle.model)
        kept = {n: t.clone() for n, t in state_of(bundle.model).residuals.items()}
        report = fold(bundle, adapter, rule)
        with adapter.disabled():
            outputs_on(
                bundle, [batch]
            )  # bitsandbytes moves the scales of 8 bits in the first forward pass
        assert base_digest(bundle.model) != digest
        report.undo.restore()
        broken = adapter.parameters()[-1]
        value = broken.data[0, 0].clone()
        broken.data[0, 0] = torch.nan
        with pytest.raises(MergeError, match="nan|NaN|finite"):
            fold(bundle, adapter, rule)
        broken.data[0, 0] = value
        if kind != "int8":
            with pytest.raises(MergeError, match="they differ"):
                fold(bundle, adapter, rule, verify=refuse)
        assert base_digest(bundle.model) == digest
        now = state_of(bundle.model).residuals
        assert now.keys() == kept.keys()
        assert all(torch.equal(now[n], kept[n]) for n in kept)
        assert relative_error(outputs_on(bundle, [batch]), live) == 0
        folded(bundle, adapter, rule)


def refuse():
    """Say that merged is not what was live."""
    raise MergeError("they differ")


@KINDS
def test_packing_gives_the_same_bits_each_time(opened, kind):
    """On one thread and on two: a run that goes on packs what it packed."""
    digests, threads = set(), torch.get_num_threads()
    try:
        for count in (1, 2, 2):
            torch.set_num_threads(count)
            bundle, _ = opened(kind)
            folded(bundle, attached(bundle, 0), "original")
            digests.add(base_digest(bundle.model))
    finally:
        torch.set_num_threads(threads)
    assert len(digests) == 1


def test_a_plain_model_is_not_packed(saved):
    """There is nothing to pack anew as it was packed: an error, and the model as before."""
    bundle = build(HfSpec(type="hf", id=saved("gemma3")), CPU)
    adapter, digest = attached(bundle, 0), base_digest(bundle.model)
    with pytest.raises(MergeError, match=r"merge\.requantize"):
        mgk.merge(bundle.model, adapter, rule="dequantized", requantize=True)
    assert base_digest(bundle.model) == digest


CONFIG = """
name = "own"
[base]
type = "hf"
id = "{given}/gemma3"
quantize = "{kind}"
[run]
threads = 1
device = "cpu"
[defaults]
adapter = {{type = "lora", rank = 3, alpha = 6, targets = ["*q_proj", "*down_proj"]}}
optimizer = {{type = "adamw", lr = {lr}}}
train = {{steps = 4, batch_size = 4}}
merge = {{type = "{rule}", requantize = true}}
gate = {{min-gain = {gain}}}
"""
PHASE = """
[phases.{name}]
data = {{type = "text", train = "{given}/{name}.jsonl", max_length = 24, test_share = 0.25, probe = "p-{name}"}}
"""


@pytest.fixture
def ran(saved, tmp_path, monkeypatch):
    """Return ``ran(...)``: a small run of three phases on a packed base, and its settings as a file."""
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "cache"))
    saved("gemma3")

    def run(
        name="run",
        *,
        kind="nf4",
        rule="original",
        lr=1e-3,
        gain="false",
        overrides=(),
        sink=ignore,
    ):
        text = CONFIG.format(given=tmp_path, kind=kind, rule=rule, lr=lr, gain=gain)
        for phase, word in (("one", "당뇨병"), ("two", "고혈압"), ("three", "폐렴")):
            lines = [
                json.dumps({"text": f"{word} {i} 혈당"}, ensure_ascii=False)
                for i in range(16)
            ]
            (tmp_path / f"{phase}.jsonl").write_text(
                "\n".join(lines) + "\n", encoding="utf-8"
            )
            text += PHASE.format(given=tmp_path, name=phase)
        config = tmp_path / "c.toml"
        config.write_text(text, encoding="utf-8")
        run_pipeline(
            None, out=tmp_path / name, config=config, overrides=overrides, sink=sink
        )
        return tmp_path / name

    return run


def test_a_row_is_measured_on_the_packed_weights(ran):
    """The matrix says what the model scores that the next phase trains on; the master scores otherwise."""
    run = ran()
    session = reopen(run)
    rebuild_base(session, session.ledger.phases[:1])
    model = session.bundle.model
    assert is_quantized(model)
    session.data = [
        session.hooks.load_data(p.data, session.bundle) for p in session.config.phases
    ]
    session.targets = ()
    measure_base(session)
    row = load_row(run / "phases/0-one/scores.json")

    def measured():
        found = measure_row(session.hooks, session.context(0), ends=False)
        return {n: s.value for n, s in found.items()}

    assert {n: s.value for n, s in row.items()} == measured()
    for packed in packed_in(model):
        packed.fill(masters(session.bundle)[packed.name].float())
    assert all(value != row[name].value for name, value in measured().items())


def test_the_record_says_what_was_held_against_what(ran, monkeypatch):
    """No phase is called exact; each was held against live; the last is not packed, and model/ is the master."""
    run = ran()
    ledger = read_ledger(run)
    assert [(e.exact, e.last, e.verify["error"] <= e.verify["bound"]) for e in ledger.phases] == [
        (False, False, True), (False, False, True), (False, True, True),
    ]  # fmt: skip
    assert all(e.kept_total == pytest.approx(1, abs=1e-3) for e in ledger.phases)
    assert sorted(p.parent.name for p in run.glob("phases/*/residual.safetensors")) == [
        "0-one",
        "1-two",
    ]
    assert any(
        "full precision (requantize)" in w
        for w in json.loads((run / "phases/2-three/merge.json").read_text())["warnings"]
    )
    monkeypatch.setenv("COLUMNS", "200")
    assert (
        CliRunner()
        .invoke(cli, ["show", str(run), "--all"])
        .output.count("then changed")
        == 3
    )
    bundle = build(HfSpec(type="hf", id=str(run / "model")), CPU)
    assert not is_quantized(bundle.model)
    assert base_digest(bundle.model) == ledger.head
    found = audit(run)
    audit_weights(found)
    assert found.sound


@pytest.mark.parametrize("again", ["true", "false"])
def test_a_base_in_bfloat16_goes_through_all_phases(ran, again):
    """As it is loaded on a GPU: held against live in each phase, nothing of a delta lost, and its row measured."""
    run = ran(
        overrides=(
            "base.dtype=bfloat16",
            f"defaults.merge.requantize={again}",
            "defaults.merge.type=dequantized",
        )
    )
    ledger = read_ledger(run)
    assert [e.result for e in ledger.phases] == ["committed"] * 3
    assert all(e.verify["error"] <= e.verify["bound"] for e in ledger.phases)
    assert all(e.kept_total == pytest.approx(1, abs=1e-3) for e in ledger.phases)
    found = audit(run)
    audit_weights(found)
    assert found.sound


def test_the_console_tells_of_training_before_what_came_of_it(ran):
    """The rule has merged compared before it reports the merge; the lines stand in the order of what was done."""
    event_lines, lines = EventLines(), []
    ran(sink=lambda event: lines.extend(said.text for said in event_lines(event)))
    found = [
        " ".join(line.split()[:2])
        for line in lines
        if line.startswith(("trained ", "merged "))
    ]
    packed = ["trained 4", "merged (original):", "merged into"]
    assert found == packed * 3


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_any_prefix_is_built_again(ran, tmp_path, kind):
    """``rebuild --until`` packs to the same bits; what it writes loads as packed weights with that digest."""
    run = ran(kind=kind)
    for entry in read_ledger(run).phases:
        made = rebuild(run, tmp_path / entry.phase, until=entry.phase)
        assert made.weights == made.recorded == entry.merged
        bundle = build(HfSpec(type="hf", id=str(made.directory)), CPU)
        assert is_quantized(bundle.model) == (not entry.last)
        assert base_digest(bundle.model) == entry.merged


def test_what_packing_costs_goes_through_the_gate(ran):
    """A gain that the packed weights give up is no gain: refused, and the base as it was; not packed it passes."""
    with pytest.raises(GateRefused, match="min-gain"):
        ran("refused", rule="dequantized", lr=1e-3, gain="{relative = 0.004}")
    run = ran(
        "plain", rule="dequantized", lr=1e-3, gain="{relative = 0.004}",
        overrides=["defaults.merge.requantize=false"],
    )  # fmt: skip
    assert [e.result for e in read_ledger(run).phases] == ["committed"] * 3


def test_a_refused_phase_leaves_the_packed_base_bit_for_bit(ran):
    """Refused in the second phase and kept apart, the third trains on what the first left, and is built again so."""
    run = ran(
        overrides=[
            "phases.two.gate.min-gain={absolute=1e9}",
            "phases.two.recover.keep-apart=true",
        ]
    )
    one, two, three = read_ledger(run).phases
    assert (two.result, two.merged) == ("kept_apart", one.merged)
    assert (
        three.result == "committed"
    )  # training holds the base against that digest before it merges
    found = audit(run)
    audit_weights(found)
    assert found.sound


def test_packing_anew_what_is_not_packed_is_refused_before_the_first_step(
    ran, tmp_path
):
    """Base in full precision, or unpacked by a phase before: an error that names the key and says what to set."""
    with pytest.raises(
        InputError, match=r"phases\.one\.merge\.requantize.*set base\.quantize"
    ):
        ran("none", kind="none")
    with pytest.raises(
        InputError,
        match=r"phases\.two\.merge\.requantize.*leave requantize on in the phases before",
    ):
        ran("mixed", overrides=["phases.one.merge.requantize=false"])
    assert [e.phase for e in read_ledger(tmp_path / "mixed").phases] == ["one"]
    assert not (tmp_path / "mixed/phases/1-two/checkpoint").exists()

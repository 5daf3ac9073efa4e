"""MiLoRA, CorDA, LoRA-Null and EVA: against PEFT where it has them, else against the formula in float64."""

import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import mgk
from mgk_core.contract.errors import InputError, Interrupted
from mgk_core.run.runner import resume_run, run_pipeline
from mgk_lora.informed import corda, eva, lora_null

SCALE, RANK = 7.0 / 3, 3


def inputs(count=200, width=13, seed=0):
    """Return inputs of very different size in different directions, with a mean."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, width, generator=generator, dtype=torch.float64)
    mix = torch.randn(width, width, generator=generator, dtype=torch.float64)
    return x @ (mix * torch.logspace(-2, 1, width, dtype=torch.float64)[:, None]) + 0.3


def weight(out=7, width=13):
    """Return a weight that is not square."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(out, width, generator=generator, dtype=torch.float64)


def up_to_sign(one, other):
    """Return ``one`` with each row's sign turned to that of ``other``."""
    return one * (one * other).sum(1, keepdim=True).sign()


@pytest.mark.parametrize("shape", [(7, 13), (21, 13)])
def test_milora_takes_the_least_singular_directions(shape):
    """scale · BA is the part of W with its ``rank`` least singular values, and the delta is zero at the start."""
    model = nn.Sequential(nn.Linear(shape[1], shape[0])).double()
    w = model[0].weight.detach().clone()
    adapter = mgk.attach(
        model, "lora", targets=["0"], rank=RANK, alpha=7.0, init="milora"
    )
    pair = adapter.pair("0.weight")
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    expected = u[:, -RANK:] @ torch.diag(s[-RANK:]) @ vh[-RANK:]
    torch.testing.assert_close(
        pair.scale * pair.b @ pair.a, expected, rtol=0, atol=1e-10
    )
    merged = adapter.merged_weight("0.weight", w)
    torch.testing.assert_close(merged, w, rtol=0, atol=1e-14)


@pytest.mark.slow  # importing PEFT takes longer than the test
def test_corda_equals_peft():
    """The factors are those of PEFT's knowledge-preserved mode, for the same second moments."""
    layer = pytest.importorskip("peft.tuners.lora.corda")
    x, w = inputs(), weight()
    moment = x.mT @ x / len(x)
    moment = moment / moment.diagonal().mean()
    linear = nn.Linear(13, 7)
    linear.weight.data = w.float()
    linear.covariance_matrix = moment.float()
    linear.corda_method, linear.rank = "kpm", RANK
    found = layer.collect_eigens_for_layer(linear, SimpleNamespace())
    part = slice(-RANK, None)
    root = (found.S_WC[part] / SCALE).sqrt()
    theirs_a, theirs_b = (
        root[:, None] * found.V_WC[:, part].t(),
        found.U_WC[:, part] * root,
    )
    a, b = corda(w, moment, RANK, SCALE)
    product = theirs_b @ theirs_a
    torch.testing.assert_close((b @ a).float(), product, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(
        up_to_sign(a, theirs_a.double()).float(), theirs_a, rtol=2e-3, atol=2e-3
    )


def test_corda_of_everything_is_the_weight():
    """With the full rank scale · BA is W itself, and the least parts are those that the texts use least."""
    x, w = inputs(), weight()
    moment = x.mT @ x / len(x)
    a, b = corda(w, moment, 7, SCALE)
    torch.testing.assert_close(SCALE * b @ a, w, rtol=0, atol=1e-8)
    a, b = corda(w, moment, RANK, SCALE)
    u, s, vh = torch.linalg.svd(w, full_matrices=False)
    plain = u[:, -RANK:] @ torch.diag(s[-RANK:]) @ vh[-RANK:]
    assert (x @ (SCALE * b @ a).mT).norm() < (x @ plain.mT).norm()


def test_lora_null_is_the_projection_on_the_inputs_null_space():
    """Inputs that leave three directions out get nothing of BA, which is W N Nᵀ."""
    x, w = inputs(), weight()
    basis = torch.linalg.qr(torch.randn(13, 13, dtype=torch.float64)).Q
    null = basis[:, :RANK]
    x = x - x @ null @ null.mT
    a, b = lora_null(w, x.mT @ x / len(x), RANK, SCALE)
    torch.testing.assert_close(SCALE * b @ a, w @ null @ null.mT, rtol=0, atol=1e-8)
    assert (x @ a.mT).abs().max() < 1e-8 * x.abs().max()


@pytest.mark.slow
def test_eva_equals_pefts_incremental_svd():
    """On one batch, on which PEFT's is exact, A is its components."""
    pca = pytest.importorskip("peft.utils.incremental_pca")
    x = inputs()
    theirs = pca.IncrementalPCA(n_components=RANK, lowrank=False)
    theirs.partial_fit(x.clone())
    mean = x.mean(0)
    a = eva(x.mT @ x / len(x) - torch.outer(mean, mean), RANK)
    torch.testing.assert_close(a, theirs.components_.to(a), rtol=0, atol=1e-6)


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
optimizer = {{type = "adamw", lr = 1e-3}}
train = {{steps = 3, batch_size = 4, log_every = 1, checkpoint_steps = 1}}
data = {{type = "text", train = "{texts}", {calibration} max_length = 24, test_share = 0.25}}
[phases.one]
adapter = {{type = "lora", rank = 2, alpha = 3, init = "{init}"}}
"""


@pytest.fixture
def config(tmp_path):
    """Return a maker of configurations, with an initialisation and with calibration text or without."""
    lines = [json.dumps({"text": f"글 {i} 하나 둘"}) for i in range(16)]
    texts = tmp_path / "texts.jsonl"
    texts.write_text("\n".join(lines) + "\n")

    def write(init, *, calibration=True):
        more = f'calibration = "{texts}",' if calibration else ""
        path = tmp_path / f"{init}.toml"
        path.write_text(CONFIG.format(texts=texts, init=init, calibration=more))
        return path

    return write


@pytest.mark.slow
@pytest.mark.parametrize("init", ["corda", "lora-null", "eva"])
def test_a_phase_begins_with_it_and_resumes_to_the_same_bits(init, config, tmp_path):
    """The phase's own checks hold (identity, merged equals unmerged); after an interruption the factors are the same."""

    def stop(event):
        if event["event"] == "step" and event["step"] == 2:
            raise KeyboardInterrupt

    out = tmp_path / "whole"
    result = run_pipeline(None, out=out, config=config(init))
    ledger = json.loads((out / "ledger.json").read_text())
    (note,) = [n for n in ledger["phases"][0]["notes"] if n.startswith(f"init {init}")]
    assert "28 weights" in note
    assert result is not None
    with pytest.raises(Interrupted):
        run_pipeline(None, out=tmp_path / "cut", config=config(init), sink=stop)
    resume_run(tmp_path / "cut")
    again = json.loads((tmp_path / "cut/ledger.json").read_text())
    assert again["phases"][0]["merged"] == ledger["phases"][0]["merged"]
    assert again["phases"][0]["adapter"] == ledger["phases"][0]["adapter"]


@pytest.mark.slow
def test_without_calibration_text_there_is_nothing_to_keep(config, tmp_path):
    """The error names the key to set."""
    with pytest.raises(InputError, match=r"phases\.one\.data\.calibration"):
        run_pipeline(
            None, out=tmp_path / "run", config=config("corda", calibration=False)
        )


def test_a_quantized_weight_cannot_be_decomposed():
    """The error says what to do."""
    model = nn.Sequential(nn.Linear(13, 7))
    model[0].weight = nn.Parameter(
        torch.zeros(7, 13, dtype=torch.int8), requires_grad=False
    )
    with pytest.raises(InputError, match="plain numbers"):
        mgk.attach(model, "lora", targets=["0"], init="milora", rank=2)

"""PEFT's tuners on mgk's own kinds of module: bf16 products, a bf16 table widened where it is used."""

import pytest
import torch

import mgk
from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.errors import InputError
from mgk_core.model.digest import base_digest

pytest.importorskip("peft")
pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)

IDS = torch.randint(3, 300, (2, 11), generator=torch.Generator().manual_seed(3))


@pytest.fixture(params=["float32", "bfloat16"])
def gemma(request):
    """Return a small Gemma 3 with a bf16 table and fp32 masters, its products in fp32 or bf16."""
    from mgk_hf.precision import apply_policy
    from mgk_hf.tiny import tiny_model

    model = (
        tiny_model(300).to(torch.bfloat16).requires_grad_(requires_grad=False).eval()
    )
    apply_policy(model, request.param, masters=torch.float32)
    return model


@pytest.mark.parametrize("kind", ["LORA", "OFT", "IA3", "LOKR"])
def test_merged_is_live_on_a_gemma(kind, gemma, put_on, train):
    """Every projection adapted: names and digest stay the base's, merged equals live on the masters."""
    from mgk_hf.precision import exact

    digest, names = base_digest(gemma), list(base_state_dict(gemma))
    adapter = put_on(gemma, kind, targets=("all-linear",))
    assert list(base_state_dict(gemma)) == names
    assert len(adapter.layers) == 4 * 7
    train(gemma, adapter, IDS, lr=1e-2)
    assert base_digest(gemma) == digest
    with exact():
        live = gemma(IDS).logits
        with adapter.disabled():
            base = gemma(IDS).logits
        report = mgk.merge(gemma, adapter)
        merged = gemma(IDS).logits
    assert (merged - live).norm() / live.norm() <= 5e-6
    assert (base - live).norm() / live.norm() >= 1e-2
    mgk.rollback(gemma, report)
    assert base_digest(gemma) == digest


def test_head_and_tied_table_are_refused(gemma, put_on):
    """Losses are computed from the head itself, past whatever stands in its place; a tied table reaches both ends."""
    with pytest.raises(InputError, match="output head"):
        put_on(gemma, "LORA", targets=("lm_head",))
    with pytest.raises(InputError, match="tied"):
        put_on(gemma, "LORA", targets=("*embed_tokens",))

"""A PEFT adapter's directory as a base: merged into its own base first, and said so."""

import json

import pytest
import torch

from mgk_core.contract.errors import InputError
from mgk_core.contract.files import read_json
from mgk_core.tools.export import export_adapter
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
CPU = torch.device("cpu")
IDS = torch.tensor([[2, *range(40, 52)]])


@pytest.fixture
def adapted(saved, tmp_path):
    """Return the directory of a trained PEFT adapter, and its live logits."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(saved("llama"))
    config = peft.LoraConfig(r=3, lora_alpha=7, target_modules=["q_proj", "down_proj"])
    live = peft.get_peft_model(model, config).eval()
    for name, parameter in live.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    live.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        return tmp_path / "adapter", live(input_ids=IDS).logits


def test_the_base_is_that_of_the_adapter_with_it_merged(adapted):
    """The same logits as PEFT gives; a note says what was merged into what."""
    path, live = adapted
    bundle = build(HfSpec(type="hf", id=str(path), compute="float32"), CPU)
    with torch.no_grad():
        found = bundle.model(input_ids=IDS).logits
    assert (found - live).norm() <= 1e-5 * live.norm()
    assert f"the adapter {path} was merged into its base" in bundle.notes[-1]
    assert bundle.preparation["prepared"] != bundle.preparation["base"]


def test_a_run_on_it_is_whole_and_is_no_adapter_for_the_bare_base(
    adapted, run_on, tmp_path
):
    """RUN/model loads by itself; the chain as an adapter is refused, since nobody can name its base."""
    from transformers import AutoModelForCausalLM

    run = run_on(adapted[0])
    assert AutoModelForCausalLM.from_pretrained(run / "model").config.vocab_size
    assert str(adapted[0]) in (run / "model/README.md").read_text()
    table = read_json(run / "phases/0-one/adapter/adapter_config.json")
    assert table["base_model_name_or_path"].endswith(f"with {adapted[0]} merged")
    with pytest.raises(InputError, match="RUN/model"):
        export_adapter(run, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"base_model_name_or_path": None}, "names no base"),
        ({"base_model_name_or_path": "/no/such/place"}, "no such directory"),
        ({"peft_type": "NONSENSE"}, "cannot merge"),
        ({"target_modules": ["nothing"]}, "cannot merge"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused(change, message, adapted):
    """With the directory and what is wrong with it."""
    path = adapted[0] / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        build(HfSpec(type="hf", id=str(adapted[0])), CPU)


def test_an_adapter_of_an_adapter_and_a_pickled_one_are_refused(adapted, tmp_path):
    """Both would need something that mgk does not do; the messages say what."""
    path = adapted[0]
    outer = tmp_path / "outer"
    outer.mkdir()
    table = json.loads((path / "adapter_config.json").read_text())
    text = json.dumps(table | {"base_model_name_or_path": str(path)})
    (outer / "adapter_config.json").write_text(text)
    with pytest.raises(InputError, match="without adapter_model"):
        build(HfSpec(type="hf", id=str(outer)), CPU)
    weights = (path / "adapter_model.safetensors").read_bytes()
    (outer / "adapter_model.safetensors").write_bytes(weights)
    with pytest.raises(InputError, match="an adapter too"):
        build(HfSpec(type="hf", id=str(outer)), CPU)

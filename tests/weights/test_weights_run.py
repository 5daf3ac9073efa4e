"""A run whose phases train rows, whole layers and then LoRA: its model is what other libraries load."""

import json

import pytest
import torch

from mgk_core.run.runner import run_pipeline
from mgk_core.run.setup import prepare_run
from mgk_core.tools.verify_run import audit, audit_weights

CONFIG = """
name = "own"
[base]
type = "hf"
id = "tiny-gemma"
compute = "float32"
new_tokens = ["하나둘", "고혈압"]
[run]
threads = 1
device = "cpu"
[defaults]
optimizer = {{type = "adamw", lr = 1e-2}}
train = {{steps = 2, batch_size = 4, log_every = 1}}
data = {{type = "text", train = "{texts}", max_length = 24, test_share = 0.25}}
retention = {{drift-guard = {{sketch = 4}}}}
[phases.table]
data = {{probe = "p1"}}
adapter = {{type = "rows", new = true}}
[phases.ends]
data = {{probe = "p2"}}
adapter = {{type = "full", targets = ["layers.0", "model.norm"]}}
[phases.rest]
data = {{probe = "p3"}}
adapter = {{type = "lora", rank = 2, alpha = 4}}
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the directory of a finished run."""
    folder = tmp_path_factory.mktemp("weights")
    rows = [{"text": f"글 {i} 하나둘 고혈압"} for i in range(16)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    texts, config = folder / "texts.jsonl", folder / "c.toml"
    texts.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config.write_text(CONFIG.format(texts=texts), encoding="utf-8")
    run_pipeline(None, out=folder / "run", config=config)
    return folder / "run"


@pytest.mark.slow
def test_every_phase_changes_what_it_names_and_nothing_else(run):
    """New rows in the first phase, a layer and a norm in the second: the base's other weights keep their bits."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    bundle = prepare_run(run).build_base(torch.device("cpu"))
    start = dict(bundle.model.named_parameters())
    table = load_file(run / "phases/0-table/adapter/state.safetensors")
    ids = table["model.embed_tokens.weight/ids"].tolist()
    assert ids == list(bundle.vocabulary.added)
    layer = load_file(run / "phases/1-ends/adapter/state.safetensors")
    assert {n.split(".layers.")[-1][0] for n in layer if "layers" in n} == {"0"}
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert tokenizer("하나둘", add_special_tokens=False)["input_ids"] == [ids[0]]
    merged = dict(model.named_parameters())["model.embed_tokens.weight"]
    same = (merged == start["model.embed_tokens.weight"]).all(1)
    assert (~same).nonzero().flatten().tolist() == ids


@pytest.mark.slow
def test_the_deltas_add_up_to_the_saved_model(run):
    """Base + rows + layer + LoRA, computed by hand from the adapters on disk, gives the saved model's logits."""
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    bundle = prepare_run(run).build_base(torch.device("cpu"))
    by_hand = dict(bundle.model.named_parameters())
    with torch.no_grad():
        table = load_file(run / "phases/0-table/adapter/state.safetensors")
        rows, ids = (table[f"model.embed_tokens.weight/{k}"] for k in ("rows", "ids"))
        by_hand["model.embed_tokens.weight"][ids] += rows
        for name, delta in load_file(
            run / "phases/1-ends/adapter/state.safetensors"
        ).items():
            by_hand[name] += delta
        lora = load_file(run / "phases/2-rest/adapter/state.safetensors")
        for name in {key.rpartition("/")[0] for key in lora}:
            by_hand[name] += 2 * lora[f"{name}/b"] @ lora[f"{name}/a"]
    model = AutoModelForCausalLM.from_pretrained(run / "model", dtype=torch.float32)
    line = torch.tensor([[2, 5, 9, *ids.tolist(), 30]])
    with torch.no_grad():
        found = model(line).logits
        expected = bundle.model.to(torch.float32)(line).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert rows.any()
    assert any(lora[key].any() for key in lora if key.endswith("/b"))


@pytest.mark.slow
def test_the_whole_directory_verifies(run):
    """Every file, the chain, and the weights rebuilt from the adapters on disk."""
    found = audit(run)
    audit_weights(found)
    assert found.sound
    assert found.checked > 10

"""RUN/model is the whole model: every file that is still true, the same Auto classes, a card."""

import json
import os
import shutil

import pytest
import torch

from mgk_core.contract.files import read_json
from mgk_core.run.rebuild import rebuild_base
from mgk_core.run.reopen import reopen
from mgk_hf.beside import keep_beside, snapshot
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
CPU = torch.device("cpu")
BESIDE = {
    "tokenizer.model": b"the tokenizer's own model",
    "preprocessor_config.json": b'{"size": 28}',
    "LICENSE": b"terms",
    "NOTICE.txt": b"notice",
    "USE_POLICY.md": b"policy",
}
LEFT = {
    "README.md": b"---\nlicense: apache-2.0\nlanguage:\n- ko\n---\n# The base's own card\n",
    "pytorch_model.bin": b"pickled",
    "optimizer.pt": b"pickled",
    "model-q4.gguf": b"other weights",
    "trainer_state.json": b"{}",
    ".gitattributes": b"",
}


def with_files(base, files):
    """Write files beside a base."""
    for name, content in files.items():
        (base / name).write_bytes(content)


SLOWLY = [
    pytest.param(name, marks=pytest.mark.slow) for name in ("gemma3", "qwen2", "gpt2")
]


@pytest.mark.parametrize("family", [*SLOWLY, "llama", "gemma3-multimodal"])
def test_the_result_loads_as_the_base_does(family, saved, run_on, tmp_path):
    """By the same class, with the run's logits and one greedy answer, all files beside it and no others."""
    from pathlib import Path

    from transformers import AutoModelForCausalLM, AutoTokenizer

    base = Path(saved(family))
    with_files(base, BESIDE | LEFT)
    run = run_on(base, **{"base.compute": "float32"})
    model, original = run / "model", AutoModelForCausalLM.from_pretrained(base)
    found = AutoModelForCausalLM.from_pretrained(model).eval()
    assert type(found) is type(original)
    assert {name: (model / name).read_bytes() for name in BESIDE} == BESIDE
    made = {path.name for path in model.iterdir()}
    kept = {path.name for path in base.iterdir()} - set(LEFT)
    assert made - kept <= {
        "README.md",
        "mgk-run.toml",
        "NOTICE.md",
        "generation_config.json",
    }
    assert kept <= made
    assert "The base's own card" not in (model / "README.md").read_text()
    session = reopen(run)
    rebuild_base(session, session.ledger.phases)
    ids = AutoTokenizer.from_pretrained(model)("고혈압은", return_tensors="pt")
    with torch.no_grad():
        expected = session.bundle.model(**ids).logits
        logits = found(**ids).logits
        assert (logits - expected).norm() <= 1e-5 * expected.norm()
        start = ids["input_ids"].shape[1]
        answer = found.generate(**ids, max_new_tokens=6, do_sample=False)[
            0, start:
        ].tolist()
    prompt = ids["input_ids"][0].tolist()
    (own,) = session.bundle.generate([prompt], max_new_tokens=6)
    assert answer[: len(own)] == own


def test_a_processor_is_loaded_from_the_result(tmp_path, tokenizer, make_model, run_on):
    """`AutoProcessor` finds the image processor and the tokenizer of a multimodal Gemma 3."""
    pytest.importorskip("PIL")
    from transformers import AutoProcessor, Gemma3Processor, PreTrainedTokenizerFast
    from transformers.models.gemma3 import Gemma3ImageProcessor

    base = tmp_path / "base"
    make_model("gemma3-multimodal").save_pretrained(base)
    tokens = {"image_token": "<unk>", "boi_token": "<bos>", "eoi_token": "<eos>"}
    own = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, pad_token="<pad>", eos_token="<eos>",
        bos_token="<bos>", unk_token="<unk>", extra_special_tokens=tokens,
    )  # fmt: skip
    images = Gemma3ImageProcessor(size={"height": 28, "width": 28})
    processor = Gemma3Processor(
        image_processor=images, tokenizer=own, image_seq_length=4
    )
    processor.save_pretrained(base)
    loaded = AutoProcessor.from_pretrained(run_on(base) / "model")
    assert isinstance(loaded, Gemma3Processor)
    assert loaded.image_processor.size == images.size


def test_the_card_states_what_the_run_has_recorded(saved, run_on):
    """Licence and language of the base, digests, every score, and a command that gives the same weights."""
    from pathlib import Path

    from huggingface_hub import ModelCard

    from mgk_core.run.runner import run_pipeline

    base = Path(saved("llama"))
    with_files(base, LEFT)
    run = run_on(base)
    card = ModelCard.load(run / "model/README.md")
    data = card.data.to_dict()
    assert data["license"] == "apache-2.0"
    assert data["language"] == ["ko"]
    assert data["pipeline_tag"] == "text-generation"
    assert "base_model" not in data  # a directory is no hub id
    ledger, table = read_json(run / "ledger.json"), read_json(run / "retention.json")
    assert ledger["base"][:16] in card.text
    assert ledger["phases"][-1]["merged"] in card.text
    for row in range(len(table["rows"])):
        for column in range(len(table["probes"])):
            score = (
                f"{table['R'][row][column]:.4g} ± {table['stderr'][row][column]:.2g}"
            )
            assert f"{score} ({table['n'][row][column]})" in card.text
    assert "clinical" not in card.text
    again = run.parent / "again"
    run_pipeline(None, out=again, config=run / "model/mgk-run.toml")
    assert (
        read_json(again / "ledger.json")["phases"][-1]["merged"]
        == ledger["phases"][-1]["merged"]
    )


def test_a_medical_pipelines_card_warns(saved, run_on):
    """By the name of the pipeline, the base or the data."""
    run = run_on(saved("llama"), name="korean-medical")
    assert "Not for clinical use" in (run / "model/README.md").read_text()


def test_files_of_a_vocabulary_that_grew_stay_behind(saved, run_on, tmp_path):
    """The base's ``tokenizer.model`` knows nothing of new tokens; its licence still holds."""
    from pathlib import Path

    from transformers import AutoTokenizer

    base = Path(saved("llama"))
    with_files(base, BESIDE)
    (tmp_path / "new.txt").write_text("혈당측정기\n", encoding="utf-8")
    model = run_on(base, **{"base.new_tokens": str(tmp_path / "new.txt")}) / "model"
    assert not (model / "tokenizer.model").exists()
    assert (model / "LICENSE").exists()
    assert "혈당측정기" in AutoTokenizer.from_pretrained(model).get_vocab()


def test_a_link_that_leads_out_is_not_followed(tmp_path):
    """Whatever a downloaded directory names: the user's own files never go along."""
    base, target = tmp_path / "base", tmp_path / "target"
    base.mkdir()
    target.mkdir()
    (tmp_path / "secret").write_text("mine")
    (base / "LICENSE").write_text("terms")
    (base / "NOTICE").symlink_to(tmp_path / "secret")
    (base / "COPYING").symlink_to(base / "LICENSE")
    assert keep_beside(base, target, grown=False) == ("COPYING", "LICENSE")
    assert not (target / "NOTICE").exists()


def test_a_hub_snapshot_is_found_in_the_cache(tmp_path, monkeypatch):
    """Its files are links into the cache's blobs, and go along as files."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    commit = "0123456789abcdef0123456789abcdef01234567"
    root = tmp_path / "models--someone--something"
    folder = root / "snapshots" / commit
    folder.mkdir(parents=True)
    (root / "refs").mkdir()
    (root / "refs/main").write_text(commit)
    (root / "blobs").mkdir()
    for name, content in BESIDE.items():
        (root / "blobs" / f"blob-{name}").write_bytes(content)
        os.symlink(f"../../blobs/blob-{name}", folder / name)
    monkeypatch.setattr(hub, "HF_HUB_OFFLINE", True)
    found = snapshot("someone/something", None, commit)
    assert found == folder
    target = tmp_path / "target"
    target.mkdir()
    assert set(keep_beside(found, target, grown=False)) == set(BESIDE)
    assert {name: (target / name).read_bytes() for name in BESIDE} == BESIDE
    assert not any((target / name).is_symlink() for name in BESIDE)
    shutil.rmtree(root)
    assert snapshot("someone/something", None, commit) is None


def test_a_template_of_the_base_gives_way_to_the_one_trained_with(tmp_path):
    """Two templates in one directory would leave it to the reader which is meant."""
    base, target = tmp_path / "base", tmp_path / "target"
    base.mkdir()
    target.mkdir()
    (base / "chat_template.json").write_text(json.dumps({"chat_template": "old"}))
    assert keep_beside(base, target, grown=False) == ("chat_template.json",)
    (target / "chat_template.json").unlink()
    (target / "chat_template.jinja").write_text("new")
    assert keep_beside(base, target, grown=False) == ()


@pytest.mark.slow
def test_quantized_bases_are_described(saved, run_on):
    """The card says beside which weights the adapters were trained."""
    pytest.importorskip("bitsandbytes")
    run = run_on(
        saved("llama"), **{"base.quantize": "nf4", "defaults.merge.type": "original"}
    )
    assert "trained beside nf4 weights" in (run / "model/README.md").read_text()
    assert build(HfSpec(type="hf", id=str(run / "model")), CPU).model is not None

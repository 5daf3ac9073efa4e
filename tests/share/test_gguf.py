"""GGUF files: read back by transformers and by llama.cpp they are the model that was exported."""

import json
import shutil
import subprocess
import urllib.request

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from small_models import CHATML, TEXTS, byte_level, sentencepiece_like

from mgk_core.contract.errors import InputError, StoreError
from mgk_share.gguf.export import gguf as export
from mgk_share.gguf.file import Source, check, rounding
from mgk_share.gguf.layout import rotary_order
from mgk_share.gguf.ollama import MARKS, Turns, modelfile, turns_of
from mgk_share.gguf.vocabulary import SPLITS

gguf = pytest.importorskip("gguf")
QWEN = next(pattern for pattern, name in SPLITS.items() if name == "qwen2")


def tokenizer_of(family):
    """Return the kind of tokenizer that a family has."""
    if family in ("gemma3", "llama"):
        return sentencepiece_like(prefix=family == "llama")
    return byte_level(QWEN if family.startswith("qwen") else None)


def exported(directory, kind="f32"):
    """Export a model directory beside itself; return the folder and the file's name."""
    out = directory.parent / f"{directory.name}-{kind}"
    out.mkdir()
    export(directory, out, kind)
    return out, f"{out.name}-{kind.upper()}.gguf"


def logits(model, ids):
    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float()


@pytest.mark.parametrize("family", ["gemma3", "llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("kind", ["f32", "q8_0"])
def test_transformers_loads_the_same_model(family, kind, directory):
    """F32: the original's logits and tokens. Q8_0: those of the original with its weights rounded."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = tokenizer_of(family)
    source = directory(family, tokenizer)
    out, name = exported(source, kind)
    loaded = AutoModelForCausalLM.from_pretrained(
        out, gguf_file=name, dtype=torch.float32
    )
    original = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = tokenizer(TEXTS[1]).input_ids
    found, expected = logits(loaded, ids), logits(original, ids)
    if (
        kind == "f32"
    ):  # norms of Gemma are stored as w + 1, which costs one fp32 rounding
        assert (found - expected).norm() <= 1e-5 * expected.norm()
        read = AutoTokenizer.from_pretrained(out, gguf_file=name)
        assert [read(t).input_ids for t in TEXTS] == [
            tokenizer(t).input_ids for t in TEXTS
        ]
        return
    moved = 0.0
    for key, weight in original.state_dict().items():
        stored = "Q8_0" if weight.dim() > 1 else "F32"
        difference = (loaded.state_dict()[key] - weight).abs()
        bound = torch.from_numpy(rounding(weight.numpy(), stored).copy())
        assert (difference <= bound + 2e-7).all(), key
        moved = max(moved, difference.max().item())
    assert moved > 1e-4
    original.load_state_dict(loaded.state_dict())
    assert torch.equal(logits(original, ids), found)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "tolerance"),
    # llama.cpp reads GELU from a table of fp16: 2^-11 relative in each of seven layers.
    [("gemma3", 7 * 2**-11), ("gemma3-vision", 7 * 2**-11), ("llama", 1e-5), ("llama3", 1e-5), ("qwen2", 1e-5), ("qwen3", 1e-5)],
)  # fmt: skip
def test_llama_cpp_loads_the_same_model(family, tolerance, directory):
    """The same tokens for the same texts, and the same log-probabilities after a prompt."""
    xllamacpp = pytest.importorskip("xllamacpp")
    from small_models import build

    tokenizer = tokenizer_of(family)
    out, name = exported(directory(family, tokenizer))
    settings = xllamacpp.CommonParams()
    settings.model.path = str(out / name)
    settings.n_ctx, settings.n_parallel, settings.port, settings.warmup = (
        256,
        1,
        0,
        False,
    )
    settings.cpuparams.n_threads = 1
    settings.flash_attn_type = (
        xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    server = xllamacpp.Server(settings)
    for text in TEXTS:
        cut = ask(server, "/tokenize", content=text, add_special=True)["tokens"]
        assert cut == tokenizer(text).input_ids
    ids = tokenizer(TEXTS[1]).input_ids
    answer = ask(
        server,
        "/completion",
        prompt=ids,
        n_predict=1,
        n_probs=20,
        temperature=0,
        ignore_eos=True,
    )
    model = build(family, len(tokenizer) + 3)
    expected = logits(model, ids)[-1].log_softmax(-1)
    for option in answer["completion_probabilities"][0]["top_logprobs"]:
        if option["id"] != tokenizer.eos_token_id:
            assert abs(option["logprob"] - expected[option["id"]].item()) <= tolerance


def ask(server, path, **body):
    request = urllib.request.Request(
        server.listening_address + path,
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.loads(answer.read())


def test_the_vision_tower_is_left_out_and_reported(directory):
    """A multimodal Gemma becomes its text model."""
    source = directory("gemma3-vision", byte_level())
    out = source.parent / "out"
    out.mkdir()
    lines = export(source, out, "f16")
    assert any("vision tower" in line for line in lines)
    names = {t.name for t in gguf.GGUFReader(out / "out-F16.gguf").tensors}
    assert "blk.6.ffn_norm.weight" in names
    assert not any("vision" in name for name in names)


def test_a_value_that_was_changed_is_found(directory):
    """The check compares every tensor: one bit of a weight is enough."""
    source = directory("llama", byte_level())
    out, name = exported(source, "bf16")
    opened = Source.open(source)
    assert check(opened, out / name).error <= 2**-8
    tensor = next(
        t
        for t in gguf.GGUFReader(out / name).tensors
        if t.name == "blk.1.ffn_up.weight"
    )
    data = bytearray((out / name).read_bytes())
    data[int(tensor.data_offset) + 1] ^= 0x40  # an exponent's highest bit
    (out / name).write_bytes(data)
    with pytest.raises(StoreError, match=r"blk\.1\.ffn_up"):
        check(opened, out / name)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"query_pre_attn_scalar": 100}, "query_pre_attn_scalar"),
        ({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]}, "gemma2"),
    ],
)
def test_what_llama_cpp_has_no_word_for_is_refused(changes, key, directory):
    """Nothing is approximated in silence."""
    source = directory("gemma3", byte_level())
    path = source / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(InputError, match=key):
        exported(source)


def test_a_weight_beyond_fp16_is_refused(directory):
    """It would become infinite; bf16 holds it."""
    from safetensors.torch import load_file, save_file

    source = directory("qwen3", byte_level(QWEN))
    path = source / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.0.mlp.up_proj.weight"][0, 0] = 1e5
    save_file(tensors, path, {"format": "pt"})
    with pytest.raises(InputError, match="--type bf16"):
        exported(source, "f16")
    exported(source, "bf16")


@given(
    arrays(np.float32, (2, 64), elements=st.floats(-3e4, 3e4, width=32)),
    st.sampled_from(["F32", "F16", "BF16", "Q8_0"]),
)
def test_rounding_bounds_what_a_type_does(values, kind):
    """For any values the stored ones are within the bound that the check uses."""
    stored = gguf.GGMLQuantizationType[kind]
    found = gguf.dequantize(gguf.quantize(values, stored), stored).reshape(values.shape)
    assert (np.abs(found - values) <= rounding(values, kind)).all()


@given(st.integers(1, 4), st.integers(1, 5), st.integers(1, 3))
def test_rotary_order_pairs_the_halves(heads, half, width):
    """Row i of a head's first half comes to 2i, row i of its second to 2i + 1."""
    rows = np.arange(heads * 2 * half * width).reshape(heads * 2 * half, width)
    found = rotary_order(rows, heads).reshape(heads, 2 * half, width)
    given_rows = rows.reshape(heads, 2 * half, width)
    assert (found[:, 0::2] == given_rows[:, :half]).all()
    assert (found[:, 1::2] == given_rows[:, half:]).all()


GEMMA = (
    "{{ bos_token }}{% set first = '' %}{% if messages[0]['role'] == 'system' %}"
    "{% set first = messages[0]['content'] + '\n\n' %}{% set messages = messages[1:] %}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ first if loop.first else '' }}{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
BRACES = CHATML.replace("<|im_end|>", "{{ '}}{{' }}")
CHATS = (
    ("user",),
    ("user", "assistant", "user"),
    ("system", "user"),
    ("system", "user", "assistant", "user"),
)
PROGRAM = """package main
import ("encoding/json"; "os"; "text/template")
type Message struct { Role, Content string }
func main() {
	var in struct { Template string; Messages []Message }
	json.NewDecoder(os.Stdin).Decode(&in)
	t := template.Must(template.New("").Parse(in.Template))
	if err := t.Execute(os.Stdout, in); err != nil { panic(err) }
}
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "template", [CHATML, GEMMA, BRACES], ids=["chatml", "gemma", "braces"]
)
def test_go_renders_the_turns_of_the_chat_template(template, tmp_path):
    """Ollama's engine (Go's text/template) gives the text that transformers gives, without BOS."""
    if shutil.which("go") is None:
        pytest.skip("needs Go")
    tokenizer = byte_level()
    tokenizer.chat_template = template
    (tmp_path / "main.go").write_text(PROGRAM)
    subprocess.run(
        ["go", "build", "-o", "render", "main.go"],
        cwd=tmp_path,
        check=True,
        timeout=120,
    )
    turns = turns_of(tokenizer).template()
    for roles in CHATS:
        chat = [{"role": r, "content": f"text {i} of {r}"} for i, r in enumerate(roles)]
        expected = tokenizer.apply_chat_template(
            chat, tokenize=False, add_generation_prompt=True
        )
        messages = [{"Role": m["role"], "Content": m["content"]} for m in chat]
        done = subprocess.run(
            [tmp_path / "render"], input=json.dumps({"Template": turns, "Messages": messages}),
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        assert done.stdout == expected.removeprefix(tokenizer.bos_token)


def test_a_template_is_taken_apart():
    """ChatML and Gemma's: what is before, between and after the messages."""
    tokenizer = byte_level()
    assert turns_of(tokenizer) == Turns(
        "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>assistant\n",
        "<|im_end|>\n", "<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n",
    )  # fmt: skip
    tokenizer.chat_template = GEMMA
    found = turns_of(tokenizer)
    assert (found.user_open, found.system_open, found.system_end) == (
        "<start_of_turn>user\n", "<start_of_turn>user\n", "\n\n",
    )  # fmt: skip
    assert not any(mark in found.template() for mark in MARKS.values())


def test_a_modelfile_names_the_weights_and_every_stop(directory):
    """The end of a turn and the end of the text; no template where the base has none."""
    tokenizer = byte_level()
    out, name = exported(directory("qwen3", tokenizer_of("qwen3")))
    text = (out / "Modelfile").read_text()
    assert text.startswith(f"FROM ./{name}\nTEMPLATE ")
    assert 'PARAMETER stop "<eos>"' in text
    assert 'PARAMETER stop "<|im_end|>"' in text
    tokenizer.chat_template = "{{ messages[0]['content'] }}"  # leaves the rest out
    text, note = modelfile(out / name, tokenizer, ())
    assert "TEMPLATE" not in text
    assert "leaves the assistant message out" in note

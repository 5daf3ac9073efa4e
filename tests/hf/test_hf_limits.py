"""What a base cannot do is said before training: kinds of model, vocabulary, positions, windows."""

import pytest
import torch

from mgk_core.config.resolve import load_tree
from mgk_core.contract.bundle import Choice, Tokens
from mgk_core.contract.errors import InputError
from mgk_core.run.setup import prepare
from mgk_core.tools.plan import make_plan
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
CPU = torch.device("cpu")
SIZES = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2}  # fmt: skip


@pytest.fixture
def opened(tmp_path, tokenizer):
    """Return ``opened(model)``: the bundle of a model that was saved and loaded."""

    def make(model, own=tokenizer):
        model.save_pretrained(tmp_path / "base")
        own.save_pretrained(tmp_path / "base")
        return build(HfSpec(type="hf", id=str(tmp_path / "base")), CPU)

    return make


def encoders():
    """Yield models that are no decoders, by name."""
    import transformers as t

    bert = {"vocab_size": 320, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 48}  # fmt: skip
    t5 = {
        "vocab_size": 320,
        "d_model": 32,
        "d_ff": 48,
        "num_layers": 1,
        "num_heads": 2,
        "d_kv": 16,
    }
    bart = {"vocab_size": 320, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1,
            "encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48}  # fmt: skip
    return {
        "BERT": lambda: t.BertForMaskedLM(t.BertConfig(**bert)),
        "RoBERTa": lambda: t.RobertaForMaskedLM(t.RobertaConfig(**bert)),
        "ELECTRA": lambda: t.ElectraForMaskedLM(t.ElectraConfig(**bert)),
        "T5": lambda: t.T5ForConditionalGeneration(
            t.T5Config(decoder_start_token_id=0, **t5)
        ),
        "BART": lambda: t.BartForConditionalGeneration(t.BartConfig(**bart)),
        "a classifier": lambda: t.LlamaForSequenceClassification(
            t.LlamaConfig(**SIZES)
        ),
    }


@pytest.mark.parametrize(
    "name", ["BERT", "RoBERTa", "ELECTRA", "T5", "BART", "a classifier"]
)
def test_a_model_that_is_no_decoder_is_named(name, opened):
    """An encoder, an encoder-decoder, a classifier: refused with what was expected instead."""
    with pytest.raises(InputError, match=r"base\.id: .*(expected|cannot be loaded)"):
        opened(encoders()[name]())


def test_weights_that_are_missing_are_not_made_up(opened, saved, tokenizer):
    """transformers would initialise them at random, with a warning that scrolls by."""
    from pathlib import Path

    from safetensors.torch import load_file, save_file

    base = Path(saved("llama"))
    state = load_file(base / "model.safetensors")
    state.pop("model.layers.1.mlp.up_proj.weight")
    save_file(state, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        InputError, match=r"1 weights are missing .*layers\.1\.mlp\.up_proj"
    ):
        build(HfSpec(type="hf", id=str(base)), CPU)


def test_a_shape_other_than_the_configurations_is_named(saved):
    """The configuration lies about a width, or the weights are another model's."""
    import json
    from pathlib import Path

    base = Path(saved("llama"))
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"intermediate_size": 90}))
    with pytest.raises(InputError, match="mlp"):
        build(HfSpec(type="hf", id=str(base)), CPU)


def grown(tokenizer, tokens, **more):
    """Return a copy of the tokenizer with more tokens."""
    import copy

    own = copy.deepcopy(tokenizer)
    own.add_tokens(list(tokens))
    for key, value in more.items():
        setattr(own, key, value)
    return own


def llama(**changes):
    """Build a tiny Llama."""
    import transformers as t

    return t.LlamaForCausalLM(t.LlamaConfig(**{**SIZES, **changes}))


def test_tokens_without_a_row_are_noted_and_refused_where_they_are_used(
    opened, tokenizer
):
    """Gemma 3 has such a token itself; a template that uses one cannot work at all."""
    bundle = opened(llama(), grown(tokenizer, ["<image>"]))
    assert "1 tokens beyond the embedding's 320 rows (<image>)" in " ".join(
        bundle.notes
    )
    with pytest.raises(InputError, match=r"token '<image>' has id 320"):
        bundle.pack([Tokens((2, 320), (2, 320))])
    with pytest.raises(InputError, match=r"token '<image>' has id 320"):
        bundle.score([Choice((2, 5), ((320,), (7,)), 0)])
    template = "{% for m in messages %}<turn>{{ m.content }}<end>{% endfor %}"
    with pytest.raises(InputError, match=r"chat template use <turn>, <end>"):
        opened(llama(), grown(tokenizer, ["<turn>", "<end>"], chat_template=template))


def test_more_positions_than_there_are_is_refused(opened):
    """GPT-2 has a table of them; the message names both numbers."""
    import transformers as t

    config = t.GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=8)
    bundle = opened(t.GPT2LMHeadModel(config))
    assert bundle.check_items([Tokens(tuple(range(8)), tuple(range(8)))]) == ()
    with pytest.raises(
        InputError, match="9 tokens does not fit the base's 8 positions"
    ):
        bundle.check_items([Tokens(tuple(range(9)), tuple(range(9)))])
    with pytest.raises(InputError, match="8 positions"):
        bundle.check_items([Choice(tuple(range(5)), ((1,), (1, 2, 3, 4)), 0)])
    with pytest.raises(InputError, match="8 positions"):
        bundle.generate([[2, 5, 6]], max_new_tokens=6)


def test_a_window_of_rotary_positions_is_a_note(opened):
    """The model computes on; beyond the window it was made for it does so badly."""
    bundle = opened(llama(max_position_embeddings=8))
    assert bundle.check_items([Tokens(tuple(range(8)), tuple(range(8)))]) == ()
    (note,) = bundle.check_items([Tokens(tuple(range(12)), tuple(range(12)))])
    assert "12 tokens" in note
    assert "8 positions" in note


def test_a_plan_finds_what_does_not_fit(tmp_path, tokenizer, run_on):
    """`mgk plan` refuses rows that are too long for the base before a step is made."""
    import transformers as t

    config = t.GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=8)
    t.GPT2LMHeadModel(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    lessons = str(tmp_path / "lessons.jsonl")
    given = {"base.id": str(tmp_path / "base"), "phases.one.data.train": lessons}
    tree = load_tree(None, tmp_path / "one.toml", given)
    with pytest.raises(InputError, match="8 positions"):
        make_plan(prepare(tree))

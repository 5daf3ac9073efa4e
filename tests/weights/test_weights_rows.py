"""Rows of a token table: what is chosen, what is trained, what PEFT and a merge make of it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

import mgk
from mgk_core.contract.adapter import base_state_dict, state_of
from mgk_core.contract.errors import InputError
from mgk_hf.tiny import tiny_config, tiny_model, tiny_tokenizer
from mgk_hf.vocabulary import HfVocabulary
from mgk_weights.tokens import script_of

IDS = (3, 17, 41)


def model_of(*, tied=True, seed=0):
    """Return a small Gemma 3, its two ends tied or not."""
    from transformers import Gemma3ForCausalLM

    if tied:
        return tiny_model(96, seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Gemma3ForCausalLM(tiny_config(96, tie_word_embeddings=False)).eval()


def trained(model, **options):
    """Attach rows and give them deltas that are not zero."""
    adapter = mgk.attach(model, "rows", **options)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return adapter


def logits(model):
    """Return logits over ids with and without trained rows."""
    with torch.no_grad():
        return model(torch.tensor([[2, 3, 17, 5, 41, 40]])).logits


@pytest.mark.parametrize("tied", [True, False])
def test_only_the_chosen_rows_are_trained_and_merged(tied):
    """Both ends of the table get the delta, tied ones one of them; every other number keeps its bits."""
    model = model_of(tied=tied)
    before = {n: t.clone() for n, t in base_state_dict(model).items()}
    adapter = trained(model, ids=IDS)
    width = model.config.hidden_size
    shapes = [tuple(p.shape) for p in adapter.parameters()]
    assert shapes == [(3, width)] * (1 if tied else 2)
    live = logits(model)
    mgk.merge(model, adapter)
    torch.testing.assert_close(logits(model), live, rtol=0, atol=1e-5)
    tables = set(adapter.targets())
    assert tables == {"model.embed_tokens.weight"} | (
        set() if tied else {"lm_head.weight"}
    )
    for name, tensor in base_state_dict(model).items():
        same = (tensor == before[name]).reshape(len(tensor), -1).all(1)
        expected = [i for i in range(len(tensor)) if name in tables and i in IDS]
        assert (~same).nonzero().flatten().tolist() == expected


@pytest.mark.slow  # importing PEFT takes longer than the test
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("tied", [True, False])
def test_peft_loads_the_saved_rows(tmp_path, tied):
    """`PeftModel.from_pretrained` gives the logits of the unmerged model."""
    from peft import PeftModel

    model = model_of(tied=tied)
    adapter = trained(model, ids=IDS)
    adapter.save(tmp_path)
    live = logits(model)
    other = PeftModel.from_pretrained(model_of(tied=tied), str(tmp_path))
    torch.testing.assert_close(logits(other), live, rtol=0, atol=1e-5)
    assert not torch.equal(live, logits(model_of(tied=tied)))


def test_gradients_are_those_of_the_whole_table():
    """Autograd through the part gives rows of the gradient that the whole tied table gets."""
    model = model_of()
    ids = torch.tensor([[2, 3, 17, 5, 41, 40]])
    whole = copy.deepcopy(model).requires_grad_(True)
    F.cross_entropy(whole(ids).logits[0, :-1], ids[0, 1:]).backward()
    adapter = mgk.attach(model, "rows", ids=IDS)
    F.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:]).backward()
    (found,) = adapter.parameters()
    expected = whole.get_input_embeddings().weight.grad[list(IDS)]
    torch.testing.assert_close(found.grad, expected, rtol=1e-4, atol=1e-6)


def test_tokens_are_chosen_by_text_script_file_and_id(tmp_path):
    """What is chosen adds up; a script's tokens have letters of that script alone."""
    tokenizer = tiny_tokenizer(["가나다라 마바사 가나", "the heart pumps the"], 320)
    model = tiny_model(len(tokenizer))
    vocabulary = HfVocabulary(tokenizer, range(len(tokenizer) - 2, len(tokenizer)))
    state_of(model).vocabulary[:] = [vocabulary]
    texts = vocabulary.texts()

    def ids(**options):
        adapter = mgk.attach(model, "rows", **options)
        (delta,) = adapter.deltas.values()
        mgk.detach(model, adapter)
        return delta.ids.tolist()

    hangul = ids(scripts=["hangul"])
    assert hangul
    assert all(script_of(texts[i]) == "HANGUL" for i in hangul)
    assert any(len(texts[i].strip()) > 1 for i in hangul)
    assert ids(new=True) == list(vocabulary.added)
    words, numbers = tmp_path / "words.txt", tmp_path / "ids.txt"
    words.write_text("the\n", encoding="utf-8")
    numbers.write_text("7 9\n", encoding="utf-8")
    the = vocabulary.id_of("the")
    assert ids(tokens_file=str(words)) == ids(tokens=["the"]) == [the]
    assert ids(ids_file=str(numbers), ids=[9, 4], tokens=["the"]) == sorted(
        {4, 7, 9, the}
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "chooses no row"),
        ({"ids": [96]}, "no row 96"),
        ({"ids": [-1]}, "no row -1"),
        ({"new": True}, "no vocabulary"),
        ({"ids_file": "nowhere"}, "nowhere"),
        ({"ids": [1], "targets": ["norm"]}, "embedding or a linear"),
        ({"ids": [1], "targets": ["lm_head"]}, "tied"),
    ],
)
def test_what_cannot_be_trained_is_refused_and_nothing_changed(options, words):
    """The error names what was asked for; the model is as before."""
    model = model_of()
    kinds = {n: type(m) for n, m in model.named_modules()}
    with pytest.raises(InputError, match=words):
        mgk.attach(model, "rows", **options)
    assert {n: type(m) for n, m in model.named_modules()} == kinds


def test_one_end_of_a_tie_is_untied_on_request():
    """With tied = "untie" the head alone changes, and PEFT's format, which cannot hold that, is not written."""
    model = model_of()
    table = model.get_input_embeddings().weight.clone()
    adapter = trained(model, ids=IDS, targets=["lm_head"], tied="untie")
    assert list(adapter.targets()) == ["lm_head.weight"]
    live = logits(model)
    mgk.merge(model, adapter)
    torch.testing.assert_close(logits(model), live, rtol=0, atol=1e-5)
    assert torch.equal(model.get_input_embeddings().weight, table)


def test_rows_of_bfloat16_leave_what_rounding_drops_beside_them():
    """W' + residual is W + D in fp32, and the residual is zero outside the chosen rows."""
    model = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 9)).to(torch.bfloat16)
    before = model[0].weight.detach().float()
    adapter = trained(model, ids=[1, 4], targets=["0"])
    delta = adapter.delta("0.weight").clone()
    mgk.merge(model, adapter)
    residual = state_of(model).residuals["0.weight"]
    assert torch.equal(model[0].weight.float() + residual, before + delta)
    assert residual.any()
    assert not residual[[0, 2, 3, *range(5, 11)]].any()
    assert not delta[[0, 2, 3, *range(5, 11)]].any()

"""New tokens: chosen where they save most, initialised to the mean of their pieces."""

import copy
import re
from collections import Counter

import pytest
import torch
from attrs import evolve

from mgk_core.config.resolve import structure_spec
from mgk_core.contract.errors import ConfigError, InputError
from mgk_core.host.manager import load_plugins
from mgk_core.model.digest import base_digest
from mgk_hf.extend import choose, extend
from mgk_hf.loading import build
from mgk_hf.specs import HfSpec
from mgk_hf.tiny import tiny_config, tiny_model, tiny_tokenizer
from mgk_hf.vocabulary import HfVocabulary

CORPUS = [
    "당뇨병은 혈당이 높은 병이고 당뇨병에는 인슐린을 쓴다.",
    "당뇨병을 앓는 사람은 인슐린이 모자란다. 인슐린은 혈당을 낮춘다.",
    "고혈압과 당뇨병은 함께 온다. 고혈압에는 약을 쓰고 고혈압을 살핀다.",
]
SIZE = 320


@pytest.fixture
def base():
    """A tiny base and its tokenizer, made anew: both are changed."""
    tokenizer = tiny_tokenizer(["가나다라 마바사", "the heart pumps"], SIZE)
    return tiny_model(len(tokenizer)), tokenizer


def untied(vocabulary):
    from transformers import Gemma3ForCausalLM

    torch.manual_seed(0)
    return Gemma3ForCausalLM(tiny_config(vocabulary, tie_word_embeddings=False))


def test_words_that_stand_most_often_in_most_pieces_are_chosen(base):
    """The beginnings of words that save most come first, with the blank before them and without particles."""
    _, tokenizer = base
    texts = [
        "이 당뇨병은 저 당뇨병과 그 당뇨병을 본다. 이 인슐린은 저 인슐린과 그 인슐린을 쓴다."
    ] * 2
    chosen = choose(texts, tokenizer, 2)
    assert set(chosen) == {" 당뇨병", " 인슐린"}
    assert choose(texts, tokenizer, 50)[:2] == chosen
    assert " 당뇨" not in choose(
        texts, tokenizer, 50
    )  # all that it could save is saved


def test_choosing_takes_what_saves_most_at_each_step(base):
    """The greedy choice equals one that computes every gain anew, from texts cut before and after."""
    _, tokenizer = base

    def size(text):
        return (
            len(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else 0
        )

    words = Counter(w for t in CORPUS for w in re.findall(r" ?[가-힣]{2,}", t))
    starts = Counter()
    for word, n in words.items():
        starts.update(
            {word[:k]: n for k in range(2 + word.startswith(" "), len(word) + 1)}
        )
    often = [c for c, n in sorted(starts.items()) if n >= 3]
    saved = {
        (c, w): size(w) - 1 - size(w[len(c) :])
        for c in often
        for w in words
        if w.startswith(c)
    }
    best, expected = dict.fromkeys(words, 0), []
    for _ in range(4):
        gains = {
            c: sum(n * max(0, saved.get((c, w), 0) - best[w]) for w, n in words.items())
            for c in often
        }
        top = max(often, key=lambda c: gains[c])
        if gains[top] == 0:
            break
        expected.append(top)
        best = {w: max(b, saved.get((top, w), 0)) for w, b in best.items()}
    assert expected
    assert choose(CORPUS, tokenizer, 4) == expected


@pytest.mark.parametrize("tied", [True, False])
def test_new_rows_begin_as_the_mean_of_their_pieces(base, tied):
    """Both ends of the table get the mean, ties stay ties, and every old row keeps its bits."""
    model, tokenizer = base
    model = model if tied else untied(len(tokenizer))
    size = len(tokenizer)
    old = [
        m.weight.detach().clone()
        for m in (model.get_input_embeddings(), model.get_output_embeddings())
    ]
    pieces = tokenizer("당뇨병", add_special_tokens=False)["input_ids"]
    made = extend(model, tokenizer, ["당뇨병", "인슐린"], CORPUS)
    assert (made.tokens, made.start) == (("당뇨병", "인슐린"), size)
    ends = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    assert (ends[0] is ends[1]) == tied
    for end, before in zip(ends, old, strict=True):
        assert torch.equal(end[:size], before)
        torch.testing.assert_close(end[size], before[pieces].mean(0), rtol=0, atol=1e-6)
    assert model.config.vocab_size == size + 2


def test_texts_are_cut_into_fewer_tokens_and_come_back(base):
    """The tokens saved are those counted; with particles and blanks around them texts decode unchanged."""
    model, tokenizer = base
    before = sum(
        len(tokenizer(t, add_special_tokens=False)["input_ids"]) for t in CORPUS
    )
    made = extend(model, tokenizer, choose(CORPUS, tokenizer, 3), CORPUS)
    ids = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in CORPUS]
    assert (made.before, made.after) == (before, sum(map(len, ids)))
    assert made.saved == 1 - made.after / before > 0.1
    assert [tokenizer.decode(i) for i in ids] == CORPUS
    assert f"{len(made.tokens)} tokens added" in str(made)


def test_what_the_vocabulary_has_is_left_out(base):
    """Known tokens are not added twice; with nothing left to add, or an empty token, it is an error."""
    model, tokenizer = base
    made = extend(model, tokenizer, ["당뇨병", "당뇨병"])
    assert made.tokens == ("당뇨병",)
    with pytest.raises(InputError, match="already"):
        extend(model, tokenizer, ["당뇨병"])
    with pytest.raises(InputError, match="empty"):
        extend(model, tokenizer, [" "])


def test_a_base_is_prepared_before_its_first_use(tmp_path):
    """The settings extend the shipped tiny base; its preparation says from which base to which, and what it saves."""
    words, texts = tmp_path / "words.txt", tmp_path / "texts.txt"
    words.write_text("심근경색\n", encoding="utf-8")
    texts.write_text("\n".join(CORPUS * 3), encoding="utf-8")
    plain = build(HfSpec(type="hf", id="tiny-gemma"), torch.device("cpu"))
    spec = HfSpec(
        type="hf",
        id="tiny-gemma",
        new_tokens=str(words),
        new_tokens_from=(str(texts),),
        new_tokens_count=2,
    )
    bundle = build(spec, torch.device("cpu"))
    entry = bundle.preparation
    assert plain.preparation == {}
    assert (entry["base"], entry["prepared"]) == (
        base_digest(plain.model),
        base_digest(bundle.model),
    )
    assert (entry["tokens"], entry["first_id"]) == (3, len(plain.tokenizer))
    assert bundle.vocabulary.added == range(len(plain.tokenizer), len(bundle.tokenizer))
    assert entry["corpus_tokens"]["after"] < entry["corpus_tokens"]["before"]
    assert bundle.notes[0].startswith(
        "3 tokens added to the vocabulary; the corpus takes"
    )
    bundle.save(tmp_path / "model")
    again = build(HfSpec(type="hf", id=str(tmp_path / "model")), torch.device("cpu"))
    assert again.tokenizer("심근경색", add_special_tokens=False)["input_ids"] == [
        entry["first_id"]
    ]
    assert base_digest(again.model) == entry["prepared"]


def test_new_tokens_are_listed_or_in_a_file(tmp_path):
    """A list holds the tokens themselves, and gives the same base as a file of them; a file in a list is an error."""
    words = tmp_path / "words.txt"
    words.write_text("심근경색\n부정맥\n", encoding="utf-8")
    spec, device = HfSpec(type="hf", id="tiny-gemma"), torch.device("cpu")
    listed = build(evolve(spec, new_tokens=("심근경색", "부정맥")), device)
    read = build(evolve(spec, new_tokens=str(words)), device)
    assert base_digest(listed.model) == base_digest(read.model)
    with pytest.raises(InputError, match="is a file"):
        build(evolve(spec, new_tokens=(str(words),)), device)


def test_the_vocabulary_knows_each_token():
    """Ids by text, texts by id; what is no single token has no id."""
    tokenizer = tiny_tokenizer(["가나다라 마바사", "the heart pumps"], SIZE)
    vocabulary = HfVocabulary(tokenizer)
    texts = vocabulary.texts()
    assert len(texts) == len(tokenizer)
    assert texts[vocabulary.id_of("the")].strip() == "the"
    assert texts[tokenizer.bos_token_id] == ""
    assert vocabulary.id_of("the heart pumps") is None
    assert copy.deepcopy(vocabulary) is vocabulary


def test_settings_of_earlier_versions_are_skipped_at_their_defaults():
    """A run directory of a version that trained new tokens itself is read, unless it changed those settings."""
    registry = load_plugins().registry
    table = {"type": "hf", "new_tokens_steps": 30, "new_tokens_lr": 1e-3}
    assert structure_spec(registry, "base", table) == HfSpec(type="hf")
    with pytest.raises(ConfigError, match=r"new_tokens_steps.*removed.*'rows'"):
        structure_spec(registry, "base", {**table, "new_tokens_steps": 9})

"""Templates: what is trained is what is scored and generated, and it reads back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgk_text.extract import extract
from mgk_text.records import Entry, Question
from mgk_text.specs import DIRECTIONS
from mgk_text.templates import DictionaryTemplate, McqTemplate

ENTRY = Entry("심방세동", "atrial fibrillation", "심방이 무질서하게 떠는 부정맥이다.")
QUESTION = Question(
    "가장 알맞은 약은?",
    ("콜히친", "와파린", "고리이뇨제", "정맥 베타차단제", "베타차단제"),
    4,
    "심박수를 늦춘다.",
)
TARGETS = ("content", "letter", "reasoning")
TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Zl", "Zp")),
    min_size=1,
    max_size=40,
)


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_learnt_answer_reads_back_as_the_answer(encoders, style, target):
    """Decoding what is learnt and extracting from it gives the right option, strictly, in every style."""
    encoder, template = encoders[style], McqTemplate(target, lists_options=True)
    tokens = encoder.pairs([(template.ask(QUESTION), template.answer(QUESTION))])[0]
    said = encoder.decode([i for i in tokens.labels if i != -100])
    found = template.read(said, QUESTION)
    assert (found.strict, found.lenient, found.formatted) == (4, 4, True)


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_learnt_term_reads_back_as_the_term(encoders, style, direction):
    """Every direction of an entry reads back, in every style."""
    encoder, template = encoders[style], DictionaryTemplate(direction)
    tokens = encoder.pairs([(template.ask(ENTRY), template.answer(ENTRY))])[0]
    said = encoder.decode([i for i in tokens.labels if i != -100])
    assert template.read(said) == template.answer(ENTRY).rstrip(".")
    assert template.answer(ENTRY) not in template.ask(ENTRY)


@pytest.mark.parametrize("style", ["plain", "chat"])
@pytest.mark.parametrize("listed", [True, False])
def test_training_scoring_and_generation_see_the_same_tokens(encoders, style, listed):
    """The trained sequence is the scored prompt, the scored option and the stop token, nothing else."""
    encoder, template = encoders[style], McqTemplate("content", listed)
    trained = encoder.pairs([(template.ask(QUESTION), template.answer(QUESTION))])[0]
    prompt = encoder.prompts([template.ask(QUESTION)])[0]
    choice = encoder.choices(
        [(template.ask(QUESTION), template.options(QUESTION), QUESTION.answer, "")]
    )[0]
    assert choice.prompt == prompt
    assert trained.ids == (*prompt, *choice.options[choice.answer], trained.ids[-1])
    assert trained.ids[-1] in encoder.conversation.stops
    assert trained.labels == ((-100,) * len(prompt) + trained.ids[len(prompt) :])
    assert (
        trained.nbytes == choice.nbytes[choice.answer] == len(QUESTION.content.encode())
    )


def test_plain_answers_end_with_the_end_of_sequence(bundle, encoders):
    """Without chat turns an answer follows a blank and ends with the tokenizer's own end."""
    encoder, end = encoders["plain"], bundle.tokenizer.eos_token_id
    learnt = encoder.pairs([("물음:", "답")])[0]
    assert learnt.ids[-1] == end
    assert end in encoder.conversation.stops
    assert bundle.tokenizer.decode(learnt.ids, skip_special_tokens=True) == "물음: 답"


@given(prompt=TEXT, answer=TEXT)
def test_texts_never_become_special_tokens(
    encoders, bundle, chat_tokenizer, prompt, answer
):
    """Whatever a text holds, a turn mark or an end of sequence in it stays text, and it comes back."""
    tokenizers = {"plain": bundle.tokenizer, "chat": chat_tokenizer}
    for style, encoder in encoders.items():
        special = set(tokenizers[style].all_special_ids)
        marked = f"{prompt}<end_of_turn><eos>{answer}"
        tokens = encoder.pairs([(marked, marked)])[0]
        learnt = [i for i in tokens.labels if i != -100]
        assert not special & set(learnt[:-1]), style
        said = tokenizers[style].decode(learnt[:-1])
        assert said == (f" {marked}" if style == "plain" else marked.strip())


@given(
    options=st.lists(
        TEXT.filter(lambda t: t.strip()),
        min_size=2,
        max_size=5,
        unique_by=lambda t: "".join(t.split()).casefold().strip(".。"),
    ),
    data=st.data(),
)
def test_content_and_letter_answers_read_back_for_any_options(options, data):
    """An answer that is exactly an option's letter, or its content where no other is alike, is that option."""
    place = data.draw(st.integers(0, len(options) - 1))
    letter = "ABCDE"[place]
    assert extract(f" {letter}\n", options).strict == place
    found = extract(f" {options[place]} ", options).strict
    assert (
        found == place
        or options[place].strip() in "ABCDE"
        or not options[place].strip(" .。")
    )


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        ("E", 4, 4),
        (" 베타차단제.", 4, 4),
        ("정맥베타차단제", 3, 3),  # inside the other option's name, yet its own
        ("정답은 E입니다", None, None),  # a letter that goes on as a word is none
        ("정답은 E 입니다", None, 4),
        ("정답: (E)", None, 4),
        ("답: 5번", None, 4),
        ("⑤ 베타차단제", None, 4),
        ("E. 베타차단제", None, 4),
        ("이 환자에게는 정맥 베타차단제를 쓴다", None, 3),
        ("콜히친이나 와파린을 쓴다", None, None),
        ("A형 간염에는 쓰지 않는다", None, None),  # not the first letter anywhere
        ("Because Every Drug", None, None),
        ("정답: A 또는 B", None, 0),
        ("정답: A, 아니 정답: B", None, None),
        ("F", None, None),
        ("", None, None),
    ],
)
def test_the_extractor_takes_no_letter_that_is_not_an_answer(text, strict, lenient):
    """Strict takes an answer and nothing else; lenient takes one that is said in other words, if it is one."""
    found = extract(text, QUESTION.options)
    assert (found.strict, found.lenient) == (strict, lenient)


@pytest.mark.parametrize(
    ("text", "strict", "lenient", "formatted"),
    [
        ("<reasoning>심박수를 늦춘다.</reasoning> E", 4, 4, True),
        ("<reasoning>A가 아니다.</reasoning>\nE", 4, 4, True),
        ("<reasoning></reasoning> E", None, None, False),
        ("<reasoning>까닭</reasoning> 베타차단제", None, 4, False),
        ("E", None, 4, False),
        ("<reasoning>까닭 E", None, None, False),
    ],
)
def test_reasoning_must_come_first_and_a_letter_after_it(
    text, strict, lenient, formatted
):
    """The reasoning format is one block that is not empty, then one letter; letters inside it are no answer."""
    found = extract(text, QUESTION.options, reasoning=True)
    assert (found.strict, found.lenient, found.formatted) == (
        strict,
        lenient,
        formatted,
    )

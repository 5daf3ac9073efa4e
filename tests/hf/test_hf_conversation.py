"""The law of conversations: a model is served in the markup that it was trained in."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from chat_families import BY_NAME, FAMILIES, tokenizer_of
from clocks import Tomorrow
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer
from transformers.utils import chat_template_utils

from mgk_core.contract.errors import InputError
from mgk_hf.chat_template import Settings
from mgk_hf.conversation import HfConversation

NAMES = [family.name for family in FAMILIES]
OPENS = {"deepseek-r1"}
"""Families whose finished exchange leaves out the block that their prompt opens."""
TEXT = st.text(
    st.characters(codec="utf-8", exclude_categories=("Cs", "Cc", "Co")), max_size=30
).map(lambda text: f"가{text}나")


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def conversation(name, thinking=None, **settings):
    """Return a family's conversation in turns, and its tokenizer."""
    family = BY_NAME[name]
    tokenizer = tokenizer_of(family)
    ends = tuple(tokenizer.convert_tokens_to_ids(list(family.ends)))
    thinking = thinking or ("off" if name in OPENS else "auto")
    made = HfConversation(tokenizer, Settings(thinking, **settings), ends)
    return made.styled("chat"), tokenizer


@pytest.fixture(scope="module", params=NAMES)
def spoken(request):
    """Return (family, its conversation, its tokenizer)."""
    return BY_NAME[request.param], *conversation(request.param)


def learnt(tokens):
    return [label for label in tokens.labels if label != -100]


@given(question=TEXT, answer=TEXT)
def test_prompts_and_exchanges_are_what_the_template_renders(spoken, question, answer):
    """Prompt ids equal `apply_chat_template`; prompt and answer with its end equal the finished exchange."""
    family, talk, tokenizer = spoken
    prompt = talk.prompts([[user(question)]])[0]
    served = tokenizer.apply_chat_template(
        [user(question)], add_generation_prompt=True, return_dict=False
    )
    assert list(prompt) == served
    [[tokens]] = talk.exchanges([[user(question), assistant(answer)]])
    assert tokens.ids[: len(prompt)] == prompt
    assert set(tokens.labels[: len(prompt)]) == {-100}
    assert learnt(tokens) == list(tokens.ids[len(prompt) :])
    assert learnt(tokens)[-1] == tokenizer.convert_tokens_to_ids(family.turn_end)
    assert tokens.nbytes == len(answer.encode())
    whole = tokenizer.apply_chat_template(
        [user(question), assistant(answer)], tokenize=False, return_dict=False
    )
    assert answer in tokenizer.decode(learnt(tokens))
    if family.name in OPENS:
        assert (
            tokenizer.decode(tokens.ids).replace("<think>\n\n</think>\n\n", "", 1)
            == whole
        )
    else:
        ids = tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert list(tokens.ids) == ids[: len(tokens.ids)]
        assert (
            tokenizer.decode(ids[len(tokens.ids) :], skip_special_tokens=True).strip()
            == ""
        )


@given(question=TEXT, answers=st.lists(TEXT, min_size=2, max_size=3))
def test_scored_options_are_cut_as_what_is_learnt(spoken, question, answers):
    """The scored prompt, an option and the turn's end are the trained example."""
    _, talk, _ = spoken
    [options] = talk.options([[user(question)]], [answers])
    examples = talk.exchanges([[user(question), assistant(a)] for a in answers])
    for ids, [tokens] in zip(options.answers, examples, strict=True):
        made = (*options.prompt, *ids)
        assert tokens.ids[: len(made)] == made
        assert 1 <= len(tokens.ids) - len(made) <= 2


@given(question=TEXT, answer=TEXT)
def test_what_is_learnt_reads_back_as_the_answer(spoken, question, answer):
    """Reading the learnt ids gives the answer, without markup or empty thinking."""
    _, talk, _ = spoken
    [[tokens]] = talk.exchanges([[user(question), assistant(answer)]])
    assert talk.read(learnt(tokens)).strip() == answer.strip()


def test_several_turns_are_learnt_as_they_are_served(spoken):
    """Of each assistant turn, its prompt is that of serving, and all turns are learnt once."""
    _, talk, tokenizer = spoken
    chat = [user("첫째?"), assistant("하나."), user("둘째?"), assistant("둘.")]
    [examples] = talk.exchanges([chat])
    said = [talk.read(learnt(e)) for e in examples]
    assert "".join(said).replace(" ", "") == "하나.둘."
    prompt = tokenizer.apply_chat_template(
        chat[:3], add_generation_prompt=True, return_dict=False
    )
    last = examples[-1]
    assert list(last.ids[: len(prompt)]) == prompt
    assert all(label != -100 for label in last.labels[len(prompt) :])


def test_every_end_of_a_turn_stops_an_answer(spoken):
    """Stops hold the generation configuration's tokens, the template's and the tokenizer's."""
    family, talk, tokenizer = spoken
    wanted = {*family.ends, family.turn_end, family.eos}
    assert set(talk.stops) == set(tokenizer.convert_tokens_to_ids(sorted(wanted)))


@given(text=TEXT)
def test_special_tokens_in_messages_stay_text(spoken, text):
    """Whatever a message holds, only the template's own tokens are special."""
    family, talk, tokenizer = spoken
    hostile = f"{text}{family.turn_end}{family.eos}"
    special = {*tokenizer.all_special_ids}
    one = talk.prompts([[user(hostile)]])[0]
    other = talk.prompts([[user("가")]])[0]
    assert sum(i in special for i in one) == sum(i in special for i in other)
    assert hostile in tokenizer.decode(one)


def test_a_base_is_asked_with_bos_only_where_its_tokenizer_puts_one(spoken):
    """Plain texts begin as the tokenizer begins them, and BOS is never there twice."""
    family, talk, tokenizer = spoken
    text = talk.styled("plain").documents(["두통"])[0]
    assert list(text.ids) == tokenizer("두통")["input_ids"]
    prompt = talk.prompts([[user("두통")]])[0]
    bos = tokenizer.bos_token_id
    assert bos is None or prompt.count(bos) == ("bos_token" in family.template)


@pytest.mark.parametrize("name", ["deepseek-r1", "qwen-3.5"])
def test_an_open_block_is_refused_or_settled_by_the_setting(name):
    """A prompt that opens <think> needs a choice where the template has no switch for it."""
    if name == "deepseek-r1":
        with pytest.raises(InputError, match=r"thinking: 'off'.*'closed'.*'keep'"):
            conversation(name, "auto")
    for thinking, before in {"off": "", "closed": "\n</think>\n\n"}.items():
        talk, tokenizer = conversation(name, thinking)
        [[tokens]] = talk.exchanges([[user("물음"), assistant("답")]])
        text = tokenizer.decode(learnt(tokens), skip_special_tokens=True)
        assert text == f"{before}답"
        whole = tokenizer.decode(tokens.ids)
        assert "<think>\n\n</think>\n\n답" in whole


def test_answers_may_hold_their_own_thinking():
    """thinking = keep: the answer closes the block that the prompt opens; one that does not is refused."""
    talk, tokenizer = conversation("deepseek-r1", "keep")
    [[tokens]] = talk.exchanges(
        [[user("물음"), assistant("<think>\n까닭</think>\n답")]]
    )
    assert tokenizer.decode(tokens.ids).count("<think>") == 1
    assert (
        tokenizer.decode(learnt(tokens), skip_special_tokens=True) == "까닭</think>\n답"
    )
    assert talk.read(learnt(tokens)).strip() == "답"
    with pytest.raises(InputError, match="does not close"):
        talk.exchanges([[user("물음"), assistant("답")]])


@pytest.mark.parametrize("name", ["qwen-3", "qwen-3.5"])
def test_a_template_with_a_switch_keeps_thinking_where_it_puts_it(name):
    """thinking = keep: the template itself writes the answer's thinking; without keep it is refused."""
    answer = "<think>\n까닭\n</think>\n\n답"
    talk, tokenizer = conversation(name, "keep")
    for text in (answer, "답"):
        [[tokens]] = talk.exchanges([[user("물음"), assistant(text)]])
        whole = tokenizer.apply_chat_template(
            [user("물음"), assistant(text)], return_dict=False, enable_thinking=True
        )
        assert list(tokens.ids) == whole[: len(tokens.ids)]
        assert talk.read(learnt(tokens)).strip() == "답"
    talk, _ = conversation(name)
    with pytest.raises(InputError, match=r"base\.thinking = 'keep'"):
        talk.exchanges([[user("물음"), assistant(answer)]])


@pytest.mark.parametrize("name", ["qwen-3", "qwen-3.5", "deepseek-r1", "gpt-oss"])
def test_thinking_is_off_in_the_saved_template_and_can_be_switched_on(name, tmp_path):
    """The saved tokenizer serves what was trained by default; a template's switch still works."""
    talk, tokenizer = conversation(name, "off")
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    prompt = saved.apply_chat_template(
        [user("가")], add_generation_prompt=True, return_dict=False
    )
    assert prompt == list(talk.prompts([[user("가")]])[0])
    if name.startswith("qwen"):
        on = saved.apply_chat_template(
            [user("가")],
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=True,
        )
        assert "</think>" not in on


@pytest.mark.parametrize("name", ["llama-3.2", "gpt-oss", "granite-3"])
def test_a_date_is_fixed_and_restored(name, monkeypatch):
    """A recorded markup gives the same ids on another day, and the saved template prints its date."""
    today, tokenizer = conversation(name)
    ids = today.prompts([[user("오늘은?")]])
    date = today.record()["date"]
    assert date == dt.datetime.now().date().isoformat()  # noqa: DTZ005 - as templates print it
    monkeypatch.setattr(chat_template_utils, "datetime", Tomorrow)
    later = HfConversation(tokenizer_of(BY_NAME[name]))
    later.restore(today.record())
    assert later.styled("auto").prompts([[user("오늘은?")]]) == ids
    served = tokenizer.apply_chat_template(
        [user("오늘은?")], add_generation_prompt=True, return_dict=False
    )
    assert served == list(ids[0])
    assert tokenizer.chat_template.partition("\n")[2] == BY_NAME[name].template
    other, _ = conversation(name)
    assert other.prompts([[user("오늘은?")]]) != ids
    assert other.record()["date"] > date


@pytest.mark.parametrize(
    "moment", ["%H:%M:%S", "%-d. %-m. %Y", "%A, %B %d (day %j), 100%%"]
)
def test_any_moment_is_fixed_even_where_its_format_is_computed(moment, monkeypatch):
    """The fixed template prints the run's moment in whatever format, at any later time."""
    template = (
        "{% set form = '"
        + moment
        + "' %}{{ strftime_now(form) + '\n' }}"
        + BY_NAME["phi-4"].template
    )

    def at(when):
        class Clock(dt.datetime):
            @classmethod
            def now(cls, tz=None):
                return when

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    first = dt.datetime(2026, 2, 3, 4, 5, 6)  # noqa: DTZ001 - as templates print it
    at(first)
    tokenizer = tokenizer_of(BY_NAME["phi-4"], template)
    talk = HfConversation(tokenizer).styled("auto")
    prompt = talk.prompts([[user("가")]])[0]
    assert tokenizer.decode(prompt).startswith(first.strftime(moment) + "\n")
    at(first + dt.timedelta(days=40, hours=5, minutes=7, seconds=9))
    assert talk.prompts([[user("가")]])[0] == prompt


def test_a_system_message_comes_with_the_base_or_is_folded_or_refused():
    """base.system is in every prompt, the saved template's too; a missing role is folded or refused."""
    talk, tokenizer = conversation("qwen-2.5", system='말은 "짧게".')
    prompt = talk.prompts([[user("가")]])[0]
    assert '말은 "짧게".' in tokenizer.decode(prompt)
    assert tokenizer.apply_chat_template(
        [user("가")], add_generation_prompt=True, return_dict=False
    ) == list(prompt)
    own = talk.prompts([[{"role": "system", "content": "길게."}, user("가")]])[0]
    assert "짧게" not in tokenizer.decode(own)
    with pytest.raises(InputError, match=r"base\.fold_system = true"):
        conversation("gemma-2", system="짧게.")
    folded, tokenizer = conversation("gemma-2", system="짧게.", fold_system=True)
    assert "<start_of_turn>user\n짧게.\n\n가" in tokenizer.decode(
        folded.prompts([[user("가")]])[0]
    )


def test_a_system_message_that_is_demanded_is_named():
    """A template that raises without a system message is refused with the setting that helps."""
    demand = (
        "{% if messages[0].role != 'system' %}{{ raise_exception('system first') }}{% endif %}"
        + BY_NAME["phi-4"].template
    )
    tokenizer = tokenizer_of(BY_NAME["phi-4"], demand)
    with pytest.raises(InputError, match=r"system first.*base\.system"):
        HfConversation(tokenizer).styled("auto")
    served = HfConversation(tokenizer, Settings(system="짧게.")).styled("auto")
    assert served.exchanges([[user("가"), assistant("나")]])


@pytest.mark.parametrize("name", ["gemma-2", "qwen-2.5", "llama-3.2", "mistral"])
def test_a_base_without_template_gets_one_when_asked_in_turns(name):
    """style = chat writes a template for the turn tokens there are, else a plain one with EOS."""
    family = BY_NAME[name]
    tokenizer = tokenizer_of(family, "")
    talk = HfConversation(tokenizer)
    assert not talk.styled("auto").chat
    turns = talk.styled("chat")
    assert turns.chat
    assert not talk.styled("auto").chat
    end = family.turn_end if name != "mistral" else family.eos
    [[tokens]] = turns.exchanges([[user("물음"), assistant("답")]])
    assert learnt(tokens)[-1] == tokenizer.convert_tokens_to_ids(end) in turns.stops
    whole = tokenizer.apply_chat_template(
        [user("물음"), assistant("답")], return_dict=False
    )
    assert list(tokens.ids) == whole[: len(tokens.ids)]
    prompt = talk.prompts([[user("물음")]])[0]
    assert tokens.ids[: len(prompt)] == prompt
    if name == "mistral":
        text = "User: 물음\nAssistant: 답</s>"
        assert tokenizer.decode(tokens.ids).removeprefix("<s>") == text


def test_what_is_learnt_is_what_a_template_marks_as_generated():
    """Of a template with {% generation %} the learnt tokens are those that it marks."""
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' }}"
        "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}"
        "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    )
    tokenizer = tokenizer_of(BY_NAME["phi-4"], template)
    chat = [user("첫째?"), assistant("하나."), user("둘째?"), assistant("둘.")]
    [[tokens]] = HfConversation(tokenizer).styled("auto").exchanges([chat])
    marked = tokenizer.apply_chat_template(chat, return_assistant_tokens_mask=True)
    assert list(tokens.ids) == marked["input_ids"]
    assert [int(label != -100) for label in tokens.labels] == marked["assistant_masks"]


def test_a_template_that_leaves_messages_out_is_refused():
    """A message that is not in the prompt is named, rather than trained without."""
    without = BY_NAME["phi-4"].template.replace(
        "in messages", "in messages if m.role != 'system'"
    )
    tokenizer = tokenizer_of(BY_NAME["phi-4"], without)
    chat = [{"role": "system", "content": "짧게."}, user("첫째?")]
    with pytest.raises(
        InputError, match=r"leaves the system message out.*base\.fold_system"
    ):
        HfConversation(tokenizer).styled("auto").prompts([chat])
    folded = HfConversation(tokenizer, Settings(fold_system=True)).styled("auto")
    assert "짧게.\n\n첫째?" in tokenizer.decode(folded.prompts([chat])[0])


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ nothing.at.all }}", "refuses these messages"),
        ("{% for m in messages %}{{ m.role }}{% endfor %}", "does not keep the texts"),
        ("{{ 1 // 0 }}", "refuses these messages"),
        ("{% for m in messages %", "refuses these messages"),
        (
            "{{ add_generation_prompt }}" + BY_NAME["phi-4"].template,
            "differently from its prompt",
        ),
    ],
)
def test_a_broken_template_is_refused_with_a_way_on(template, reason):
    """Whatever is wrong with a template, the error says so and names style = 'plain', which works."""
    conversation = HfConversation(tokenizer_of(BY_NAME["phi-4"], template))
    with pytest.raises(InputError, match=rf"(?s){reason}.*style = 'plain'"):
        conversation.styled("auto")
    assert conversation.styled("plain").documents(["두통"], end=True)
    assert conversation.stops


def test_tools_and_their_calls_are_rendered_and_learnt():
    """Tools go into the prompt, a call of one is learnt; a template without tools is refused."""
    template = (
        "{% if tools %}{{ '<|im_start|>system<|im_sep|>' + (tools | tojson) + '<|im_end|>' }}{% endif %}"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' }}"
        "{{ (m.content | tojson) if m.role == 'tool' else m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call.function | tojson }}{% endfor %}"
        "{{ '<|im_end|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
    )
    tokenizer = tokenizer_of(BY_NAME["phi-4"], template)
    tools = [{"type": "function", "function": {"name": "dose", "parameters": {}}}]
    calls = [
        {"type": "function", "function": {"name": "dose", "arguments": {"drug": "a"}}}
    ]
    ask = user("얼마나?")
    call = {"role": "assistant", "content": "", "tool_calls": json.dumps(calls)}
    chat = [
        {**ask, "tools": json.dumps(tools)},
        call,
        {"role": "tool", "content": '"5" mg'},
    ]
    chat.append(assistant("5 mg입니다."))
    [[tokens]] = HfConversation(tokenizer).styled("auto").exchanges([chat])
    told = [ask, {**call, "tool_calls": calls}, *chat[2:]]
    whole = tokenizer.apply_chat_template(told, tools=tools, return_dict=False)
    assert list(tokens.ids) == whole
    assert tokenizer.decode(learnt(tokens), skip_special_tokens=True) == (
        '{"name": "dose", "arguments": {"drug": "a"}}5 mg입니다.'
    )
    without = HfConversation(tokenizer_of(BY_NAME["phi-4"])).styled("auto")
    with pytest.raises(InputError, match="does not write out tools"):
        without.exchanges([chat])


def test_of_several_templates_the_default_one_is_used_and_fixed(tmp_path):
    """A template beside the default stays as it is; without a default the base counts as having none."""
    family = BY_NAME["granite-3"]
    tokenizer = tokenizer_of(family)
    tokenizer.chat_template = {"default": family.template, "rag": "{{ messages }}"}
    talk = HfConversation(tokenizer).styled("auto")
    assert talk.chat
    tokenizer.save_pretrained(tmp_path)
    saved = AutoTokenizer.from_pretrained(tmp_path)
    assert saved.chat_template["rag"] == "{{ messages }}"
    served = saved.apply_chat_template(
        [user("가")], add_generation_prompt=True, return_dict=False
    )
    assert served == list(talk.prompts([[user("가")]])[0])
    tokenizer.chat_template = {"rag": "{{ messages }}"}
    assert not HfConversation(tokenizer).styled("auto").chat


@pytest.mark.parametrize("thinking", ["off", "closed", "keep"])
def test_thinking_without_effect_is_refused(thinking):
    """A setting for thinking blocks on a template without one is an error."""
    with pytest.raises(InputError, match="no thinking block; leave it out"):
        conversation("gemma-3", thinking)

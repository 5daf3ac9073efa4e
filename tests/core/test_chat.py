"""Questions to a run's models: base before final."""

import pytest

from mgk_core.contract.errors import InputError
from mgk_core.run.runner import run_pipeline
from mgk_core.tools.chat import Chat, ask


def test_the_reference_network_cannot_be_asked(finished_run):
    """It has no words; says so."""
    with pytest.raises(InputError, match="not a language model"):
        ask(finished_run, ["hello"])


def test_what_is_no_text_is_refused_before_anything_is_loaded(finished_run):
    """Bytes of another encoding, as a shell or a pipe hands them on."""
    with pytest.raises(InputError, match="not UTF-8 from character 4"):
        ask(finished_run, ["hi " + b"\xff".decode(errors="surrogateescape")])


@pytest.fixture(scope="module")
def spoken(tmp_path_factory):
    """Return a run of one phase on the tiny Gemma."""
    pytest.importorskip("transformers")
    out = tmp_path_factory.mktemp("spoken") / "run"
    run_pipeline(
        "korean-medical", out=out, until="plain_text",
        overrides=[
            "base.id='tiny-gemma'", "run.threads=1", "phases.plain_text.train.steps=6", "defaults.gate.min-gain=false",
            *(f"phases.{p}.evaluate.limit=2" for p in ("plain_text", "dictionary", "mcq")),
        ],
    )  # fmt: skip
    return out


def test_base_and_final_answer_and_do_so_again(spoken):
    """Greedy: the same question has the same two answers, of at most so many tokens."""
    first = ask(spoken, ["당뇨병은"], tokens=6)
    assert ask(spoken, ["당뇨병은"], tokens=6) == first
    assert first[0].question == "당뇨병은"
    assert first[0].base


def test_a_chat_remembers_its_turns(spoken):
    """Both sides are kept, in order, and the base can be talked to as well."""
    chat = Chat.open(spoken, tokens=4, untouched=True)
    answer = chat.say("안녕")
    assert [t["role"] for t in chat.turns] == ["user", "assistant"]
    assert chat.turns[1]["content"] == answer

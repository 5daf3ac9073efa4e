"""Reading one table into a class: strictly, and with every problem in it."""

import math
from typing import Any, Literal

import pytest
from attrs import frozen
from hypothesis import given
from hypothesis import strategies as st

from mgk_core.config.structure import LARGEST, read_table
from mgk_core.config.tree import Tree
from mgk_core.contract.specs import at_least, one_of, option


@frozen(kw_only=True)
class Inner:
    """A table of every kind of value."""

    whole: int = 1
    number: float = 0.5
    text: str = "x"
    flag: bool = False
    some: tuple[int, ...] = ()
    table: dict[str, float] = option({})
    word: Literal["a", "b"] = "a"
    either: int | str = 1
    maybe: float | None = None
    anything: Any = None
    bounded: int = option(3, at_least(2))
    chosen: str = option("on", one_of("on", "off"))


@frozen(kw_only=True)
class Needs:
    """A table with a key that has no default."""

    name: str


def read(table, cls=Inner):
    """Return (what was read, the problems as text)."""
    problems = []
    found = read_table(Tree(), cls, table, ("t",), problems)
    return found, [str(problem) for problem in problems]


RIGHT = {
    "whole": st.integers(-LARGEST, LARGEST),
    "number": st.floats(allow_nan=False, allow_infinity=False),
    "text": st.text(max_size=5),
    "flag": st.booleans(),
    "some": st.lists(st.integers(0, 9), max_size=3),
    "table": st.dictionaries(st.text(max_size=3), st.floats(0, 1), max_size=2),
    "word": st.sampled_from(["a", "b"]),
    "either": st.one_of(st.integers(0, 9), st.text(max_size=3)),
    "maybe": st.one_of(st.none(), st.floats(0, 1)),
    "anything": st.one_of(st.integers(), st.text(max_size=3), st.booleans()),
    "bounded": st.integers(2, 9),
    "chosen": st.sampled_from(["on", "off"]),
}


@given(st.fixed_dictionaries({}, optional=RIGHT))
def test_what_fits_is_read_as_it_is(table):
    """Values keep their type; a list becomes a tuple; what is not given has its default."""
    found, problems = read(table)
    assert problems == []
    for key, value in table.items():
        expected = tuple(value) if key == "some" else value
        assert getattr(found, key) == expected
        assert key in ("some", "anything") or type(getattr(found, key)) is type(
            expected
        )
    assert "whole" in table or found.whole == 1


WRONG = {
    "text as an integer": ("whole", "1", "expected an integer, got '1'"),
    "a bool as an integer": ("whole", True, "expected an integer, got True"),
    "a fraction as an integer": ("whole", 1.5, "expected an integer"),
    "an integer of many digits": ("whole", 10**30, "got one of 31 digits"),
    "NaN": ("number", math.nan, "expected a number, got nan"),
    "text as a number": ("number", "0.5", "expected a number"),
    "an integer as text": ("text", 3, "expected a string, got 3"),
    "an integer as a bool": ("flag", 1, "expected true or false, got 1"),
    "one value as an array": ("some", 3, "an array, each an integer"),
    "text in an array": ("some", ["x"], "expected an integer"),
    "a list as a table": ("table", [1], "a table, each value a number"),
    "another word": ("word", "c", "one of 'a', 'b'"),
    "neither of two": ("either", [], "an integer or a string"),
    "below the bound": ("bounded", 1, "expected a number >= 2, got 1"),
    "a misspelt choice": ("chosen", "of", "did you mean 'off'"),
    "an unknown key": ("numbr", 1, "unknown key; did you mean 'number'"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_what_does_not_fit_is_a_problem_with_its_place(kind):
    """The key, what was expected and what came; nothing is converted in silence."""
    key, value, words = WRONG[kind]
    found, (problem,) = read({key: value})
    assert found is None
    assert f"t.{key}: " in problem
    assert words in problem


def test_an_integer_is_a_number():
    """TOML writes 1 where 1.0 is meant."""
    found, problems = read({"number": 1, "table": {"x": 2}, "maybe": 3})
    assert problems == []
    assert [type(v) for v in (found.number, found.table["x"], found.maybe)] == [
        float
    ] * 3


def test_every_problem_is_found_at_once():
    """Not only the first."""
    table = {key: value for key, value, _ in WRONG.values()}
    _, problems = read(table)
    assert len(problems) == len(table)


def test_a_key_without_a_default_must_be_given():
    """And what is not a table at all is a problem of the table."""
    assert read({}, Needs) == (None, ["t.name: missing"])
    assert read([1], Needs) == (None, ["t: expected a table"])

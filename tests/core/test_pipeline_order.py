"""Order of phases: the tuple holds; insertions stand where they name."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgk_core.contract.errors import InputError
from mgk_core.contract.pipeline import Phase, Pipeline, check_name, order


def names(phases):
    return [p.name for p in order(phases)]


def test_the_tuple_gives_the_order():
    """Phases without after or before run in the order in which they are listed."""
    assert names([Phase("c"), Phase("a"), Phase("b")]) == ["c", "a", "b"]


def test_after_stands_directly_behind_its_phase():
    """An inserted phase follows the one that it names, before the next listed one."""
    assert names([Phase("a"), Phase("b"), Phase("x", after="a")]) == ["a", "x", "b"]


def test_before_stands_directly_in_front():
    """An inserted phase precedes the one that it names, behind what is listed before."""
    assert names([Phase("a"), Phase("b"), Phase("x", before="b")]) == ["a", "x", "b"]


def test_unknown_anchor_is_named_with_the_nearest():
    """An unknown name in after= is an error that offers the nearest phase."""
    with pytest.raises(
        InputError, match=r"'x'.*after='plain_txt'.*did you mean 'plain_text'"
    ):
        order([Phase("plain_text"), Phase("x", after="plain_txt")])


def test_a_cycle_is_named():
    """Phases that wait for each other are an error that shows the circle."""
    with pytest.raises(InputError, match=r"cycle: .*x.*y|cycle: .*y.*x"):
        order([Phase("a"), Phase("x", after="y"), Phase("y", after="x")])


def test_two_phases_of_one_name_are_refused():
    """A pipeline with a name twice cannot be made."""
    with pytest.raises(InputError, match="twice: a"):
        Pipeline("p", base={}, phases=(Phase("a"), Phase("a")))


@pytest.mark.parametrize(
    "name", ["", "../x", "a/b", "a.b", ".hidden", "x" * 65, "a\nb", "a\u202eb"]
)
def test_names_that_would_leave_a_folder_are_refused(name):
    """A phase's name is safe as a folder and as a key."""
    with pytest.raises(InputError, match="expected 1 to 64"):
        check_name(name, "phase name")


@given(st.permutations(list("abcdef")), st.data())
def test_insertions_never_disturb_the_listed_order(listed, data):
    """Whatever is inserted, listed phases keep their order and every wish holds."""
    inserted = []
    for i in range(data.draw(st.integers(0, 4))):
        anchor = data.draw(st.sampled_from(listed))
        key = data.draw(st.sampled_from(["after", "before"]))
        inserted.append(Phase(f"x{i}", **{key: anchor}))
    result = names([*(Phase(n) for n in listed), *inserted])
    assert [n for n in result if n in listed] == list(listed)
    for phase in inserted:
        if phase.after:
            assert result.index(phase.name) > result.index(phase.after)
        else:
            assert result.index(phase.name) < result.index(phase.before)

"""Items of probes: only those that are scored are built, and wrong options are wrong."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgk_text import options
from mgk_text.load import load
from mgk_text.options import Distractors
from mgk_text.records import Entry
from mgk_text.specs import DictionarySpec, McqSpec
from mgk_text.templates import DictionaryTemplate

TEMPLATE = DictionaryTemplate("en-ko")
TERMS = st.sampled_from(["가", "나", "다", "라", "마"])
ENTRIES = st.lists(
    st.builds(
        Entry, ko=TERMS, en=st.sampled_from("abcde"), specialty=st.sampled_from("xy")
    ),
    min_size=1,
    max_size=12,
)


def allowed(entry, pool, specialty=None):
    """Return the wrong names by the definition: of entries that share neither term."""
    fits = [
        e.ko
        for e in pool
        if e.ko != entry.ko and e.en != entry.en and specialty in (None, e.specialty)
    ]
    return set(fits) - {entry.ko}


@pytest.mark.parametrize("many", [1000, 2])
@given(same=ENTRIES, other=ENTRIES, count=st.integers(1, 5), seed=st.integers(0, 3))
def test_drawn_options_are_wrong_and_as_many_as_there_are(
    many, same, other, count, seed
):
    """Options share no term with the entry, and are as many as asked for or as exist.

    many: how large a pool is sampled rather than shuffled; both ways keep the law.
    """
    before, options._MANY = options._MANY, many
    try:
        drawn = Distractors.of(TEMPLATE, same, other, count, seed).draw(same[0])
    finally:
        options._MANY = before
    wrong = [o for i, o in enumerate(drawn.options) if i != drawn.right]
    possible = allowed(same[0], same) | allowed(same[0], other)
    assert drawn.options[drawn.right] == same[0].ko
    assert len(set(wrong)) == len(wrong) == min(count, len(possible))
    assert set(wrong) <= possible
    first = allowed(same[0], same, same[0].specialty)
    assert len(set(wrong) & first) == min(count, len(first))


def test_only_scored_items_are_drawn_and_encoded(bundle, write, monkeypatch):
    """Of 3,000 test rows with a limit of 10, about as many are drawn as are scored."""
    draws = 0
    whole = Distractors.draw

    def counted(self, entry):
        nonlocal draws
        draws += 1
        return whole(self, entry)

    monkeypatch.setattr(Distractors, "draw", counted)
    rows = [{"ko": f"용어{i}", "en": f"term {i}"} for i in range(3000)]
    spec = DictionarySpec(
        type="dictionary",
        train=write("a.jsonl", rows[:5]),
        test=write("b.jsonl", rows),
        generate=0,
    )
    probes = load(spec, bundle).probes
    items = [p.items[:10] for p in probes]
    assert [len(list(i)) for i in items] == [10, 10, 10]
    assert all(i is items[0] for i in items)  # the three metrics share what is encoded
    assert draws < 100
    assert {len(p.items) for p in probes} == {3000}


def test_a_slice_has_the_items_of_the_whole(bundle, write):
    """Lazy items are those of the whole list, by index, slice and iteration; the longest are found."""
    rows = [
        {
            "question": f"{i}번 물음" + "?" * (i % 7),
            "A": "가",
            "B": "나",
            "answer": "AB"[i % 2],
        }
        for i in range(20)
    ]
    spec = McqSpec(
        type="mcq",
        train=write("a.jsonl", rows),
        test=write("b.jsonl", rows),
        generate=0,
    )
    items = load(spec, bundle).probes[0].items
    whole = list(items)
    assert [items[i] for i in range(20)] == whole
    assert list(items[3:9:2]) == whole[3:9:2]
    assert items[:] is items
    assert items[-1] == whole[-1]
    longest = {len(c.prompt) for c in items.longest(2)}
    assert max(len(c.prompt) for c in whole) in longest

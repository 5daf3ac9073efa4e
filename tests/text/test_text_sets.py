"""Training sets from several sources: mixtures, repeated rows, and rows that probes ask too."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgk_core.contract.errors import DataError, InputError
from mgk_text import contamination, mixture
from mgk_text.load import load as load_data
from mgk_text.records import Entry, Text
from mgk_text.rows import Reader
from mgk_text.specs import SPECS, DictionarySpec, PlainTextSpec, TextProbeSpec
from mgk_text.splits import load

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=4)


def parts(sizes):
    """Return one part of different rows for each size."""
    return [[Text(f"{p}-{i}") for i in range(n)] for p, n in enumerate(sizes)]


@given(sizes=SIZES, interleave=st.booleans())
def test_without_weights_every_row_is_there_once(sizes, interleave):
    """Whatever the order, no row is lost or repeated, and each part keeps its own order."""
    made = parts(sizes)
    found = mixture.mixed(made, (), interleave=interleave, seed=0)
    assert sorted(r.text for r in found) == sorted(
        r.text for part in made for r in part
    )
    for number, part in enumerate(made):
        assert [r for r in found if r.text.startswith(f"{number}-")] == part


@given(sizes=st.lists(st.integers(1, 40), min_size=2, max_size=4))
def test_interleaved_beginnings_have_every_part_in_proportion(sizes):
    """After a share of the rows, each part has given that share of its own, within two turns."""
    made = parts(sizes)
    found = mixture.interleaved(made)
    half = found[: len(found) // 2]
    turn = sum(
        -(-n // min(sizes)) for n in sizes
    )  # rows of one turn, each part rounded up
    for number, part in enumerate(made):
        count = sum(r.text.startswith(f"{number}-") for r in half)
        assert abs(count - len(part) * len(half) / len(found)) <= 2 * turn


@given(weight=st.floats(0.05, 4), seed=st.integers(0, 3))
def test_weights_repeat_rows_and_choose_a_fixed_fraction(weight, seed):
    """Each row is there floor or ceiling of its weight, the total within five standard errors."""
    rows = parts([400])[0]
    found = mixture.weighted(rows, weight, seed)
    counts = [sum(r is row for r in found) for row in rows[:20]]
    assert set(counts) <= {int(weight), int(weight) + 1}
    fraction = weight % 1
    assert (
        abs(len(found) - weight * 400)
        <= 5 * (fraction * (1 - fraction) * 400) ** 0.5 + 1e-9
    )
    assert mixture.weighted(rows[::-1], weight, seed)[::-1] == found


def test_weights_are_one_for_each_source(write):
    """Two sources with weights 2 and 0.5 are counted in the note; another number is refused."""
    files = tuple(
        write(f"{n}.jsonl", [{"text": f"{n} {i}"} for i in range(40)]) for n in "ab"
    )
    spec = PlainTextSpec(type="text", train=files, weights=(2.0, 0.5))
    splits = load(spec, Reader(spec))
    ours = [sum(t.text.startswith(n) for t in splits.train) for n in "ab"]
    assert ours[0] == 80
    assert 5 <= ours[1] <= 35
    assert any(
        f"40 × 2 + 40 × 0.5 = {sum(ours)} training rows" in n for n in splits.notes
    )
    spec = PlainTextSpec(type="text", train=files, weights=(1.0,))
    with pytest.raises(InputError, match="one for each source of train, 2, got 1"):
        load(spec, Reader(spec))


@pytest.mark.parametrize("deduplicate", [False, True])
def test_repeated_rows_are_counted_and_left_out_if_asked(write, deduplicate):
    """Rows that differ in blanks or case only are one; the note says what happened to the others."""
    rows = [
        {"ko": "통풍", "en": "Gout"},
        {"ko": "통풍 ", "en": "gout"},
        {"ko": "천식", "en": "asthma"},
    ]
    spec = DictionarySpec(
        type="dictionary", train=write("a.jsonl", rows), deduplicate=deduplicate
    )
    splits = load(spec, Reader(spec))
    assert len(splits.train) == (2 if deduplicate else 3)
    (note,) = [n for n in splits.notes if n.startswith("1 training row repeats")]
    assert ("an earlier one: left out" in note) == deduplicate


LONG = "환자는 사흘 전부터 시작된 발열과 기침을 주소로 응급실에 내원하였으며 흉부 영상에서 침윤이 보였다"


@pytest.fixture
def contaminated(write):
    """Files of which the second training row shares 13 words with the second test row."""
    train = [{"text": "아무 상관이 없는 글이다."}, {"text": f"머리말이다. {LONG}."}]
    test = [{"text": "다른 글이다."}, {"text": f"{LONG}, 그래서 입원하였다."}]
    return {"train": write("train.jsonl", train), "test": write("test.jsonl", test)}


@pytest.mark.parametrize("what", ["note", "drop"])
def test_shared_text_is_noted_or_dropped(contaminated, what):
    """The note names both places and the words; drop also takes the row out of train."""
    spec = PlainTextSpec(type="text", contamination=what, **contaminated)
    splits = load(spec, Reader(spec))
    assert len(splits.train) == (2 if what == "note" else 1)
    (note,) = [n for n in splits.notes if n.startswith("contamination")]
    assert "train.jsonl:2 shares “환자는 사흘" in note
    assert "test.jsonl:2" in note


def test_shared_text_is_refused_with_both_places(contaminated):
    """``refuse`` is an error at plan time, with the row, the words, and the held-out row."""
    spec = PlainTextSpec(type="text", contamination="refuse", **contaminated)
    with pytest.raises(
        DataError, match=r"train\.jsonl:2: contamination: shares .*test\.jsonl:2"
    ):
        load(spec, Reader(spec))


def test_probes_of_the_base_count_as_held_out(contaminated):
    """Text that only a base probe asks is found too."""
    spec = PlainTextSpec(
        type="text", train=contaminated["train"], base_probes={"base": contaminated["test"]},
        contamination="drop",
    )  # fmt: skip
    reader = Reader(spec)
    base = reader.foreign(contaminated["test"], "text").records
    assert len(load(spec, reader, base).train) == 1


def test_equal_rows_are_noted_with_the_first_three(write):
    """Train rows in test: how many, and where the first three are in both files."""
    rows = [{"ko": f"용어{i}", "en": f"term{i}"} for i in range(9)]
    spec = DictionarySpec(
        type="dictionary", train=write("a.jsonl", rows), test=write("b.jsonl", rows[4:])
    )
    (note,) = [n for n in load(spec, Reader(spec)).notes if "also in train" in n]
    assert note.startswith("5 of 5 test rows are also in train")
    assert note.count(" = ") == 3
    assert "b.jsonl:1 = " in note
    assert note.endswith("…")


@given(
    words=st.lists(st.sampled_from("abcdef"), min_size=1, max_size=12),
    count=st.integers(2, 6),
)
def test_runs_of_words_are_found_wherever_they_are(words, count):
    """A row that contains a held-out row's words as one run is found; one that shares none is not."""
    held = [Entry(" ".join(words), "x y z", place="h:1")]
    row = Entry("p q " + " ".join(words), "x y z r", place="t:1")
    found = contamination.overlaps([row], held, count)
    expected = len(words) + 3 >= count
    assert bool(found) == expected
    assert contamination.overlaps([Entry("k l m", "n o")], held, count) == []


def test_probes_of_other_phases_must_not_be_trained_on(write, bundle):
    """A training row that another phase's test set, base probe or the pipeline's own probe asks is found."""
    shared = "비장은 왼쪽 위에 있으며 오래된 적혈구를 걸러 내는 기관이다. " * 2
    train = write(
        "train.jsonl",
        [{"text": f"글 {i}. " * 9} for i in range(4)] + [{"text": shared}],
    )
    asked = write("asked.jsonl", [{"text": shared}])
    clean = write("clean.jsonl", [{"text": "아주 다른 글이다."}])

    def spec(**options):
        return SPECS["text"](type="text", cache=False, **options)

    mine = spec(train=train, contamination="refuse")
    load_data(mine, bundle, [spec(train=clean, test=clean)])
    others = [
        spec(train=clean, test=asked),
        spec(train=clean, base_probes={"base": asked}),
        TextProbeSpec(type="text", source=asked),
    ]
    for other in others:
        with pytest.raises(DataError, match=r"train\.jsonl:5.*asked\.jsonl:1"):
            load_data(mine, bundle, [other])
        dropped = load_data(spec(train=train, contamination="drop"), bundle, [other])
        assert any("1 train row shares" in note for note in dropped.notes)

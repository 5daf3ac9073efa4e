"""The shipped Korean medical data: enough of it, clean, and nothing leaks between splits."""

import collections
import itertools
import re
import unicodedata

import pytest

SPLITS = ("train", "dev", "test")
FOLDERS = ("text", "dictionary", "mcq")
KEYS = {
    "text": ["id", "specialty", "topic", "text"],
    "dictionary": ["id", "specialty", "topic", "ko", "en", "definition"],
    "mcq": [
        "id",
        "specialty",
        "topic",
        "question",
        "A",
        "B",
        "C",
        "D",
        "E",
        "answer",
        "reasoning",
    ],
}
LONGEST_RUN = (
    20  # letters: shorter runs are names and set phrases ("뇌실 둘레에 병변이 보이고")
)


def fold(text):
    """Return letters and digits only, so that blanks and stops do not hide what is the same."""
    return re.sub(r"\W", "", text).casefold()


def options(row):
    return [row[letter] for letter in "ABCDE"]


def right(row):
    return options(row)[row["answer"] - 1]


def topics(rows):
    return {(r["specialty"], r["topic"]) for r in rows}


def longest_common_run(a, b):
    """Length of the longest run of letters that stands in both texts."""
    best = 0
    for start in range(len(a)):
        while start + best < len(a) and a[start : start + best + 1] in b:
            best += 1
    return best


def grams(text, size=3):
    plain = fold(text)
    return {plain[i : i + size] for i in range(len(plain) - size + 1)}


def overlap(a, b):
    """Share of the smaller text's runs of three letters that the other has too."""
    return len(a & b) / min(len(a), len(b))


def test_there_is_enough_of_everything(shipped):
    """Characters, entries, questions, their test splits and the specialties reach what is promised."""
    text = shipped("text")
    assert sum(len(r["text"]) for r in text) >= 40_000
    assert len({r["specialty"] for r in text}) >= 12
    assert len(shipped("dictionary")) >= 600
    assert len(shipped("dictionary", "test")) >= 120
    assert len(shipped("mcq")) >= 360
    assert len(shipped("mcq", "test")) >= 120
    assert len({r["specialty"] for r in shipped("mcq")}) >= 10
    assert all(len(shipped(folder, "dev")) >= 15 for folder in FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_rows_have_their_columns_and_clean_text(shipped, folder):
    """Every row has exactly its columns; every text is NFC, printable, trimmed, without double blanks."""
    for row in shipped(folder):
        assert list(row) == KEYS[folder], row["id"]
        for value in row.values():
            if isinstance(value, str):
                assert value == unicodedata.normalize("NFC", value).strip(), row["id"]
                assert value, row["id"]
                assert value.isprintable(), row["id"]
                assert "  " not in value, row["id"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_ids_are_unique_and_say_where_a_row_belongs(shipped, folder):
    """An id stands once over all splits and begins with its specialty."""
    ids = [r["id"] for r in shipped(folder)]
    assert len(ids) == len(set(ids))
    assert all(r["id"].startswith(r["specialty"] + "-") for r in shipped(folder))


def test_every_specialty_stands_in_every_split(shipped):
    """No specialty is held out as a whole, so that what a test asks could be learnt."""
    names = {r["specialty"] for r in shipped("text")}
    for folder, split in itertools.product(FOLDERS, SPLITS):
        assert {r["specialty"] for r in shipped(folder, split)} == names, (
            folder,
            split,
        )


def test_terms_are_unique(shipped):
    """A Korean or English term stands once in the dictionary, whatever its blanks and capitals."""
    for column in ("ko", "en"):
        counts = collections.Counter(fold(r[column]) for r in shipped("dictionary"))
        assert not [term for term, n in counts.items() if n > 1]


def test_definitions_do_not_say_their_term(shipped):
    """A definition is one sentence of 20 to 75 letters that names neither the Korean nor the English term."""
    for row in shipped("dictionary"):
        text = fold(row["definition"])
        assert fold(row["ko"]) not in text, row["id"]
        assert fold(row["en"]) not in text, row["id"]
        assert 20 <= len(row["definition"]) <= 75, row["id"]


def test_questions_have_five_options_of_which_one_is_right(shipped):
    """Options differ, are short, and the answer is a number from 1 to 5."""
    for row in shipped("mcq"):
        assert len({fold(o) for o in options(row)}) == 5, row["id"]
        assert all(2 <= len(o) <= 30 for o in options(row)), row["id"]
        assert row["answer"] in range(1, 6), row["id"]


def test_reasoning_does_not_name_letters_or_numbers_of_options(shipped):
    """A reasoning explains; it does not point at a place in the list."""
    pointing = re.compile(
        r"보기|선택지|[1-5]\s*번(?!\s*(?:허리|엉치|염색체|과|복용))|\b[A-E]가 정답|정답은"
    )
    assert not [r["id"] for r in shipped("mcq") if pointing.search(r["reasoning"])]


@pytest.mark.parametrize("split", SPLITS)
def test_answers_are_balanced(shipped, split):
    """Each place holds the answer as often as the others, within two standard errors of a fifth."""
    rows = shipped("mcq", split)
    error = (0.2 * 0.8 / len(rows)) ** 0.5
    counts = collections.Counter(r["answer"] for r in rows)
    assert all(
        abs(counts[place] / len(rows) - 0.2) <= 2 * error for place in range(1, 6)
    ), counts


@pytest.mark.parametrize("choose", [max, min])
def test_the_length_of_options_gives_nothing_away(shipped, choose):
    """Choosing the longest option (or the shortest) on test stays within two standard errors of chance."""
    rows = shipped("mcq", "test")
    won = 0.0
    for row in rows:
        lengths = [len(o) for o in options(row)]
        best = [i for i, n in enumerate(lengths) if n == choose(lengths)]
        won += (row["answer"] - 1 in best) / len(best)  # a tie is broken by chance
    assert abs(won / len(rows) - 0.2) <= 2 * (0.2 * 0.8 / len(rows)) ** 0.5


def test_right_answers_are_wrong_ones_elsewhere(shipped):
    """How often an option stands in the whole set gives nothing away on test: the rarest and the commonest."""
    counts = collections.Counter(fold(o) for r in shipped("mcq") for o in options(r))
    rows = shipped("mcq", "test")
    for choose in (max, min):
        won = 0.0
        for row in rows:
            seen = [counts[fold(o)] for o in options(row)]
            best = [i for i, n in enumerate(seen) if n == choose(seen)]
            won += (row["answer"] - 1 in best) / len(best)
        assert abs(won / len(rows) - 0.2) <= 2 * (0.2 * 0.8 / len(rows)) ** 0.5, choose


def test_questions_of_a_topic_stand_in_one_split(shipped):
    """No topic of questions stands in two splits."""
    for a, b in itertools.combinations(SPLITS, 2):
        assert not topics(shipped("mcq", a)) & topics(shipped("mcq", b))


def test_what_test_questions_ask_is_taught(shipped):
    """Every topic of a test question has its text and all its dictionary entries in train."""
    asked = topics(shipped("mcq", "test"))
    assert asked <= topics(shipped("text", "train"))
    for folder in ("text", "dictionary"):
        for split in ("dev", "test"):
            assert not asked & topics(shipped(folder, split)), (folder, split)


@pytest.mark.parametrize(
    ("folder", "column", "most"), [("text", "text", 0.2), ("mcq", "question", 0.3)]
)
def test_splits_share_nothing_nearly_the_same(shipped, folder, column, most):
    """No text, and no question, has a near twin in another split, by its runs of three letters."""
    made = {
        s: [(r["id"], grams(r[column])) for r in shipped(folder, s)] for s in SPLITS
    }
    twins = [
        (x, y)
        for a, b in itertools.combinations(SPLITS, 2)
        for (x, p), (y, q) in itertools.product(made[a], made[b])
        if overlap(p, q) > most
    ]
    assert not twins


def test_no_two_splits_ask_for_the_same_thing(shipped):
    """Where two questions of different splits have one answer, what they say has little in common."""
    rows = [
        (s, r, grams(r["question"] + r["reasoning"], 2))
        for s in SPLITS
        for r in shipped("mcq", s)
    ]
    same = [
        (a["id"], b["id"])
        for (s, a, p), (t, b, q) in itertools.combinations(rows, 2)
        if s != t and fold(right(a)) == fold(right(b)) and overlap(p, q) > 0.2
    ]
    assert not same


def test_no_question_stands_in_the_training_text_with_its_answer(shipped):
    """Where a training text holds the answer, it shares no long run of letters with the question."""
    taught = [fold(r["text"]) for r in shipped("text", "train")]
    taught += [fold(r["definition"]) for r in shipped("dictionary", "train")]
    for row in (*shipped("mcq", "dev"), *shipped("mcq", "test")):
        for text in taught:
            if fold(right(row)) in text:
                assert longest_common_run(fold(row["question"]), text) < LONGEST_RUN, (
                    row["id"]
                )


def test_held_out_text_shares_no_sentence_with_train(shipped):
    """No sentence of a held-out text, definition or question stands in a training row."""
    columns = {
        "text": ("text",),
        "dictionary": ("definition",),
        "mcq": ("question", "reasoning"),
    }
    train = "\n".join(
        fold(r[c]) for f in FOLDERS for r in shipped(f, "train") for c in columns[f]
    )
    for folder in FOLDERS:
        for row in (*shipped(folder, "dev"), *shipped(folder, "test")):
            for column in columns[folder]:
                for sentence in re.split(r"(?<=[.?!])\s+", row[column]):
                    plain = fold(sentence)
                    assert len(plain) < LONGEST_RUN or plain not in train, (
                        row["id"],
                        sentence,
                    )


@pytest.mark.parametrize(
    ("folder", "column"),
    [
        ("text", "text"),
        ("dictionary", "definition"),
        ("mcq", "question"),
        ("mcq", "reasoning"),
    ],
)
def test_nothing_was_filled_into_a_pattern(shipped, folder, column):
    """With terms and numbers masked, at most 2 % of the sentences repeat."""
    entries = shipped("dictionary")
    terms = sorted(
        {t for r in entries for t in (r["ko"], r["en"])}, key=len, reverse=True
    )
    mask = re.compile("|".join(map(re.escape, terms)), re.IGNORECASE)
    sentences = [
        re.sub(r"\d+", "0", mask.sub("□", sentence))
        for row in shipped(folder)
        for sentence in re.split(r"(?<=[.?!])\s+", row[column])
    ]
    counts = collections.Counter(sentences)
    repeated = sum(n for n in counts.values() if n > 1)
    assert repeated / len(sentences) <= 0.02, counts.most_common(5)


def test_most_letters_are_korean(shipped):
    """Texts are Korean prose: at least 70 % of their letters are Hangul, the rest English terms."""
    for row in shipped("text"):
        letters = [c for c in row["text"] if c.isalpha()]
        assert sum("가" <= c <= "힣" for c in letters) / len(letters) > 0.7, row["id"]


def test_the_data_card_states_the_counts(shipped):
    """The data card's table agrees with the files."""
    from importlib.resources import files

    card = (files("mgk_phases") / "data" / "korean_medical" / "README.md").read_text(
        encoding="utf-8"
    )
    for folder in FOLDERS:
        counts = [len(shipped(folder, s)) for s in SPLITS]
        assert f"| `{folder}/` | {counts[0]} | {counts[1]} | {counts[2]} |" in card

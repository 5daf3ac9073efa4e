"""Readers: every format gives the same rows, and every bad row is told with file, line and reason."""

import sys

import pytest

from mgk_core.contract.errors import DataError, EnvironmentFault, InputError
from mgk_text.readers import read
from mgk_text.rows import Reader
from mgk_text.sources import HubSource, find
from mgk_text.specs import DictionarySpec, McqSpec, PlainTextSpec
from mgk_text.table import Format

ENTRIES = [
    {
        "ko": "심방세동",
        "en": "atrial fibrillation",
        "definition": "심방이 떠는 부정맥이다.",
    },
    {"ko": "폐기종", "en": "emphysema", "definition": "공기 공간이 커진 상태이다."},
]
QUESTION = {
    "question": "무엇인가?",
    "A": "가",
    "B": "나",
    "C": "다",
    "D": "라",
    "E": "마",
    "answer": 3,
}


def entries(path, **options):
    reader = Reader(
        DictionarySpec(
            type="dictionary", train=path, directions=("ko-definition",), **options
        )
    )
    found = reader.records(path)
    reader.check()
    return found


def questions(path, **options):
    reader = Reader(McqSpec(type="mcq", train=path, **options))
    found = reader.records(path)
    reader.check()
    return found.records


def problems(call):
    with pytest.raises(DataError) as caught:
        call()
    return [(p.line, p.where, p.message) for p in caught.value.problems]


def test_every_format_gives_the_same_entries(write, tmp_path):
    """JSON lines, CSV, TSV and parquet of one table are read as the same entries."""
    import pyarrow as pa
    from pyarrow import parquet

    files = [
        write("a.jsonl", ENTRIES),
        write(
            "a.csv",
            "ko,en,definition\n"
            + "".join(",".join(r.values()) + "\n" for r in ENTRIES),
        ),
        write(
            "a.tsv",
            "ko\ten\tdefinition\r\n"
            + "".join("\t".join(r.values()) + "\r\n" for r in ENTRIES),
        ),
    ]
    parquet.write_table(pa.Table.from_pylist(ENTRIES), tmp_path / "a.parquet")
    files.append(str(tmp_path / "a.parquet"))
    found = [[(e.ko, e.en, e.definition) for e in entries(f).records] for f in files]
    assert all(rows == [tuple(r.values()) for r in ENTRIES] for rows in found)


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("paragraph", [("하나\n둘", 2), ("셋", 5)]),
        ("line", [("하나", 2), ("둘", 3), ("셋", 5)]),
        ("file", [("하나\n 둘\n\n셋", 1)]),
    ],
)
def test_a_text_file_is_read_by_paragraph_line_or_file(write, unit, expected):
    """Each unit of a .txt file is a row that knows its first line."""
    path = write("a.txt", "\n하나\n 둘\n\n셋\n")
    table = read(find(path)[0], Format(txt_unit=unit))
    assert [(r.values["text"], r.line) for r in table.rows] == expected


def test_all_bad_rows_are_told_at_once(write):
    """Broken JSON, a list, a missing column, an empty value and a number each get file, line and reason."""
    path = write(
        "bad.jsonl",
        '{"ko": "가", "en": "a", "definition": "뜻이다"}\n{"ko": \n[1]\n{"ko": "나", "definition": "뜻"}\n\n'
        '{"ko": " ", "en": "b", "definition": "뜻"}\n{"ko": "다", "en": 7, "definition": "뜻"}\n',
    )
    found = problems(lambda: entries(path))
    assert [(line, where) for line, where, _ in found] == [
        (2, ""),
        (3, ""),
        (4, "en"),
        (6, "ko"),
        (7, "en"),
    ]
    assert "JSON" in found[0][2]
    assert "map it with columns.en" in found[2][2]
    with pytest.raises(DataError, match=r"bad\.jsonl:4: en: missing"):
        entries(path)


def test_skipping_bad_rows_counts_them(write):
    """With skip_bad_rows the good rows are taken and the others counted."""
    path = write(
        "bad.jsonl",
        '{"ko": "가", "en": "a", "definition": "뜻이다"}\nnonsense\n{"ko": "나"}\n',
    )
    found = entries(path, skip_bad_rows=True)
    assert [e.ko for e in found.records] == ["가"]
    assert found.skipped == 2


def test_a_file_without_one_good_row_is_an_error_even_when_skipping(write):
    """Skipping every row would train on nothing without a word."""
    path = write("bad.jsonl", "nonsense\n")
    with pytest.raises(DataError, match="is not JSON"):
        entries(path, skip_bad_rows=True)


def test_lines_that_are_not_utf8_are_told_and_the_rest_is_read(write):
    """A line in another encoding is a bad row with its number; a byte order mark is none."""
    path = write(
        "a.txt",
        "\ufeff첫째\n\n".encode() + "둘째".encode("cp949") + "\n\n셋째\n".encode(),
    )
    table = read(find(path)[0])
    assert [r.values["text"] for r in table.rows] == ["첫째", "셋째"]
    assert [p.line for p in table.problems] == [3]


def test_a_row_with_another_number_of_cells_is_told_with_its_line(write):
    """Cells over several lines count as one row that begins where it begins."""
    path = write("a.csv", 'ko,en,definition\n가,a,"뜻\n둘째 줄"\n나,b\n')
    table = read(find(path)[0])
    assert [(r.line, r.values["definition"]) for r in table.rows] == [
        (2, "뜻\n둘째 줄")
    ]
    assert [(p.line, p.message[:29]) for p in table.problems] == [
        (4, "expected 3 columns, found 2; ")
    ]


@pytest.mark.parametrize("name", ["a.docx", "missing.jsonl"])
def test_a_source_that_cannot_be_read_is_refused(tmp_path, name):
    """An unknown format and a missing file are errors that name the source."""
    with pytest.raises(InputError, match=name):
        find(str(tmp_path / name))


def test_package_data_is_found_by_the_packages_name():
    """``package:`` finds a file inside an installed package, and says which package is missing."""
    (source,) = find("package:mgk_phases/data/korean_medical/text/dev.jsonl")
    assert source.path.is_file()
    with pytest.raises(EnvironmentFault, match="no_such_package"):
        find("package:no_such_package/a.jsonl")


def test_a_hub_source_names_repository_config_split_and_revision():
    """The part after the question mark names config, split and revision; an unknown key is refused."""
    name = "hub:a/b?config=doctor&split=dev&revision=1f"
    assert find(name) == (HubSource(name, "a/b", "doctor", "dev", "1f"),)
    with pytest.raises(InputError, match="did you mean 'split'"):
        find("hub:a/b?splt=dev")


def test_a_data_set_is_read_through_datasets(write):
    """A data set of the library ``datasets`` (here made of a local file) gives rows like any other source."""
    path = write("train.jsonl", ENTRIES)
    folder = path.removesuffix("/train.jsonl")
    table = read(HubSource(f"hub:{folder}", folder))
    assert [r.values["ko"] for r in table.rows] == ["심방세동", "폐기종"]


@pytest.mark.parametrize(
    ("name", "module"), [("a.parquet", "pyarrow"), ("hub:a/b", "datasets")]
)
def test_a_missing_library_says_what_to_install(write, monkeypatch, name, module):
    """Without the extra, parquet and hub sources say which extra brings the library."""
    monkeypatch.setitem(sys.modules, module, None)
    (source,) = find(name if name.startswith("hub:") else write(name, b"PAR1"))
    with pytest.raises(EnvironmentFault, match=r"mgk\[data\]"):
        read(source)


def test_columns_are_mapped(write):
    """A file with other names is read by mapping fields to columns; an unknown field is refused."""
    path = write("a.jsonl", [{"용어": "가", "영어": "a", "뜻": "뜻이다", "과": "내과"}])
    columns = {"ko": "용어", "en": "영어", "definition": "뜻", "specialty": "과"}
    found = entries(path, columns=columns).records
    assert [(e.ko, e.en, e.specialty) for e in found] == [("가", "a", "내과")]
    with pytest.raises(InputError, match="did you mean 'definition'"):
        entries(path, columns={"definitions": "뜻"})


def test_texts_are_normalised_to_nfc_unless_told_otherwise(write):
    """Decomposed Hangul is composed on reading."""
    path = write("a.txt", "\u1100\u1161")
    for form, expected in (("NFC", "가"), ("none", "\u1100\u1161")):
        reader = Reader(PlainTextSpec(type="text", train=path, normalise=form))
        assert reader.records(path).records[0].text == expected


@pytest.mark.parametrize(
    ("answers", "counting", "expected"),
    [
        (["A", "e", " c "], "auto", [0, 4, 2]),
        ([1, 5, "3"], "auto", [0, 4, 2]),
        ([0, 4, 2.0], "auto", [0, 4, 2]),
        ([1, 2, 3], "0", [1, 2, 3]),
        ([1, 2, 3], "1", [0, 1, 2]),
    ],
)
def test_answers_are_letters_or_numbers_from_zero_or_one(
    write, answers, counting, expected
):
    """How a file counts is read off it where that is certain, and can be said."""
    path = write("a.jsonl", [QUESTION | {"answer": a} for a in answers])
    assert [q.answer for q in questions(path, answers=counting)] == expected


@pytest.mark.parametrize("answers", [[1, 2, 3], [0, 5]])
def test_ambiguous_numbers_are_refused(write, answers):
    """Numbers that may count from 0 or from 1 (or from both at once) are not guessed at."""
    path = write("a.jsonl", [QUESTION | {"answer": a} for a in answers])
    with pytest.raises(InputError, match='answers = "0" or "1"'):
        questions(path)


def test_bad_questions_are_told(write):
    """A letter beyond the options, a number out of range, equal and missing options each have their reason."""
    rows = [
        QUESTION | {"answer": "F"},
        QUESTION | {"answer": 6},
        QUESTION | {"B": "가"},
        {k: v for k, v in QUESTION.items() if k not in "BCDE"},
        QUESTION | {"answer": True},
    ]
    found = problems(lambda: questions(write("a.jsonl", rows), answers="1"))
    assert [line for line, _, _ in found] == [1, 2, 3, 4, 5]
    assert "from 1 to 5" in found[1][2]
    assert "the same" in found[2][2]


def test_options_may_stand_in_a_list_and_be_fewer(write):
    """A list of options works by mapping; letters stop at the first that is missing."""
    listed = write(
        "a.jsonl", [{"question": "?", "choices": ["가", "나", "다"], "answer": 2}]
    )
    assert (
        questions(listed, columns={"options": "choices"}, answers="0")[0].content
        == "다"
    )
    four = write("b.csv", "question,A,B,C,D,E,answer\n?,가,나,다,라,,D\n")
    assert questions(four)[0].options == ("가", "나", "다", "라")


def test_kormedmcqa_is_read_by_naming_its_layout(write):
    """Columns question, A to E, answer 1 to 5, subject, cot; numbers are certain by the layout."""
    row = {
        "subject": "doctor",
        "year": 2022,
        "period": 1,
        "q_number": 3,
        **QUESTION,
        "answer": 2,
        "cot": "까닭",
    }
    found = questions(write("a.jsonl", [row]), layout="kormedmcqa")[0]
    assert (found.content, found.reasoning, found.specialty) == ("나", "까닭", "doctor")


@pytest.mark.parametrize("head", ["code", "kcd"])
def test_a_classification_is_read_by_naming_its_layout(write, head):
    """Columns code (or kcd), en, ko; the chapter is the specialty, codes of one category one group."""
    path = write(
        "a.tsv",
        f"{head}\ten\tko\nA00\tCholera\t콜레라\nA00.1\tCholera eltor\t엘토르 콜레라\n",
    )
    reader = Reader(DictionarySpec(type="dictionary", train=path, layout="kcd"))
    found = reader.records(path).records
    reader.check()
    assert [(e.ko, e.specialty, e.group) for e in found] == [
        ("콜레라", "A", "A00"),
        ("엘토르 콜레라", "A", "A00"),
    ]


def test_mmlu_files_have_no_header(write):
    """Layout mmlu: question, A to D, answer as a letter, from the first line on."""
    path = write("a.csv", 'What is it?,one,two,"three, really",four,C\n')
    assert questions(path, layout="mmlu")[0].content == "three, really"


def test_a_layout_of_another_kind_is_refused(write):
    """A classification is no set of questions."""
    with pytest.raises(InputError, match="does not hold mcq data"):
        questions(write("a.jsonl", [QUESTION]), layout="kcd")

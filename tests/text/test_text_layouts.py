"""Data in the layouts and files that people have: each is recognised from its columns and content."""

import codecs
import gzip
import json
import unicodedata
from itertools import product

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict, disable_progress_bars
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import parquet

from mgk_core.contract.errors import DataError, InputError
from mgk_text import answers
from mgk_text.layouts import LAYOUTS, recognise
from mgk_text.rows import Reader
from mgk_text.sources import find
from mgk_text.specs import AutoSpec, DictionarySpec

ASKED = ("갈증과 잦은 소변으로 온 환자에게 먼저 잴 것은?", "새벽마다 쌕쌕거리는 병은?")
OPTIONS = (("요산", "혈당", "안압", "폐활량"), ("통풍", "위궤양", "천식", "무좀"))
RIGHT = (1, 2)
ANSWERED = ("혈당을 먼저 잰다.", "천식이다.")
CODES = (
    ("I10", "Essential hypertension", "본태성 고혈압"),
    ("M10", "Gout", "통풍"),
    ("J45", "Asthma", "천식"),
)
HEAD = "kcd,en,ko\r\n"
BODY = "".join(",".join(row) + "\r\n" for row in CODES)


def exam(make):
    """Return one row for each question: make(question, options, index of the right one)."""
    return [make(*row) for row in zip(ASKED, OPTIONS, RIGHT, strict=True)]


def lettered(options, names="ABCD"):
    return dict(zip(names, options, strict=True))


EXAMS = {
    "kormedmcqa": exam(
        lambda q, o, k: (
            {"subject": "doctor", "year": 2022, "q_number": 1, "question": q}
            | {**lettered(o), "E": "없음", "answer": k + 1, "cot": ""}
        )
    ),
    "kmmlu": exam(
        lambda q, o, k: {
            "question": q,
            "answer": k + 1,
            **lettered(o),
            "Category": "Health",
        }
    ),
    "medqa": exam(
        lambda q, o, k: (
            {"question": q, "answer": o[k], "options": lettered(o)}
            | {"meta_info": "step1", "answer_idx": "ABCD"[k]}
        )
    ),
    "medmcqa": [
        *exam(
            lambda q, o, k: {
                "question": q,
                **lettered(o, ("opa", "opb", "opc", "opd")),
                "cop": k,
            }
        ),
        {
            "question": "무엇?",
            "opa": "가",
            "opb": "나",
            "opc": "다",
            "opd": "라",
            "cop": 0,
        },
    ],
    "mmlu": exam(
        lambda q, o, k: {
            "question": q,
            "subject": "anatomy",
            "choices": list(o),
            "answer": k,
        }
    ),
    "arc": exam(
        lambda q, o, k: (
            {"question": q, "answerKey": "1234"[k]}
            | {"choices": {"text": list(o), "label": list("1234")}}
        )
    ),
    "mgk": exam(
        lambda q, o, k: (
            {"Question": q, "Answer": "ABCD"[k]}
            | lettered(o, [f"Option_{c}" for c in "ABCD"])
        )
    ),
}


def read(path, **options):
    """Return (kind, records, notes) of a file as ``data.train`` alone reads it."""
    reader = Reader(AutoSpec(type="auto", train=path, **options))
    kind = reader.recognised()
    records = reader.records(path).records
    reader.check()
    return kind, records, reader.notes


@pytest.mark.parametrize("layout", EXAMS)
def test_exams_are_recognised_by_their_columns(write, layout):
    """The published layouts of exams give the same questions, and the note names the layout."""
    kind, found, (note,) = read(write("a.jsonl", EXAMS[layout]))
    assert kind == "mcq"
    assert [(q.question, q.content) for q in found[:2]] == [
        (asked, options[right])
        for asked, options, right in zip(ASKED, OPTIONS, RIGHT, strict=True)
    ]
    title = next(x.title for x in LAYOUTS if x.name == layout and x.kind == "mcq")
    assert f"read as {title} (" in note
    assert note.endswith(f"{len(EXAMS[layout])} rows")


def test_pubmedqa_has_its_abstract_before_the_question(write):
    """The contexts come first, the options are yes, no, maybe, and the long answer is a reasoning."""
    row = {
        "question": "효과가 있는가?",
        "context": {"contexts": ["배경이다.", "결과이다."], "labels": []},
    }
    path = write("a.jsonl", [row | {"final_decision": "no", "long_answer": "없었다."}])
    _, (found,), (note,) = read(path)
    assert found.question == "배경이다.\n\n결과이다.\n\n효과가 있는가?"
    assert (found.content, found.reasoning) == ("no", "없었다.")
    assert "context.contexts" in note
    byid = {"77": {"QUESTION": "효과?", "CONTEXTS": ["배경"], "final_decision": "yes"}}
    byid |= {
        "78": {
            "QUESTION": "다른 효과?",
            "CONTEXTS": ["배경"],
            "final_decision": "maybe",
        }
    }
    _, found, _ = read(write("b.json", json.dumps(byid)))
    assert [q.content for q in found] == ["yes", "maybe"]


CHATS = {
    "messages": [{"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
                 for q, a in zip(ASKED, ANSWERED, strict=True)],
    "sharegpt": [{"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
                 for q, a in zip(ASKED, ANSWERED, strict=True)],
    "alpaca": [{"instruction": q, "input": "", "output": a} for q, a in zip(ASKED, ANSWERED, strict=True)],
    "dolly": [{"instruction": q, "context": "", "response": a, "category": "qa"}
              for q, a in zip(ASKED, ANSWERED, strict=True)],
    "prompt-completion": [{"prompt": q, "completion": a} for q, a in zip(ASKED, ANSWERED, strict=True)],
    "question-answer": [{"question": q, "answer": a} for q, a in zip(ASKED, ANSWERED, strict=True)],
}  # fmt: skip


@pytest.mark.parametrize("layout", CHATS)
def test_chats_and_instructions_become_the_same_dialogues(write, layout):
    """Six layouts of one exchange give one dialogue each, user first, then assistant."""
    kind, found, (note,) = read(write("a.jsonl", CHATS[layout]))
    assert kind == ("chat" if layout in {"messages", "sharegpt"} else "instruction")
    turns = [[(m.role, m.content) for m in d.messages] for d in found]
    assert turns == [
        [("user", q), ("assistant", a)] for q, a in zip(ASKED, ANSWERED, strict=True)
    ]
    assert next(x.title for x in LAYOUTS if x.name == layout) in note


def test_what_surrounds_an_instruction_is_kept(write):
    """Alpaca's input follows the instruction, a system column comes first, parts of text are joined."""
    rows = [
        {
            "instruction": "번역하라",
            "input": "fever",
            "output": "열",
            "system": "의사다",
        }
    ]
    _, (found,), _ = read(write("a.json", json.dumps(rows)))
    assert [m.content for m in found.messages] == ["의사다", "번역하라\n\nfever", "열"]
    parts = [{"type": "text", "text": "가"}, {"type": "text", "text": "나"}]
    chat = {
        "messages": [
            {"role": "user", "content": parts},
            {"role": "assistant", "content": "다"},
        ]
    }
    _, (found,), _ = read(write("b.jsonl", [chat]))
    assert found.messages[0].content == "가\n나"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "user", "content": "가"}], "no assistant message"),
        ([{"role": "assistant", "content": "가"}], "begins with an answer"),
        (
            [{"role": "user", "content": "가"}] * 2
            + [{"role": "assistant", "content": "나"}],
            "two user",
        ),
        ([{"role": "robot", "content": "가"}], "expected the role"),
        ([{"role": "user", "content": None}], "expected text as content"),
        (
            [{"role": "user", "content": "가"}, {"role": "assistant", "content": " "}],
            "is empty",
        ),
        ([], "expected a list of messages"),
        ("hello", "expected a list of messages"),
    ],
)
def test_dialogues_that_teach_nothing_are_refused(write, messages, reason):
    """Each wrong list of messages is reported with its line and reason."""
    path = write(
        "a.jsonl",
        [{"messages": CHATS["messages"][0]["messages"]}, {"messages": messages}],
    )
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{reason}"):
        read(path)


def test_preferences_are_pairs_or_labelled_answers(write):
    """Text, message lists with or without a prompt, and labels all give prompt, chosen and rejected."""
    user, good, bad = ({"role": r, "content": c} for r, c in
                       (("user", "물음"), ("assistant", "좋다"), ("assistant", "나쁘다")))  # fmt: skip
    rows = [
        {"prompt": "물음", "chosen": "좋다", "rejected": "나쁘다"},
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
    ]
    kind, found, _ = read(write("a.jsonl", rows))
    assert kind == "preference"
    assert {(p.prompt[0].content, p.chosen, p.rejected) for p in found} == {
        ("물음", "좋다", "나쁘다")
    }
    unpaired = [{"prompt": "물음", "completion": "좋다", "label": True}]
    unpaired += [{"prompt": "물음", "completion": "나쁘다", "label": "0"}]
    _, found, _ = read(write("b.jsonl", unpaired))
    assert [(p.chosen, p.rejected, p.paired) for p in found] == [
        ("좋다", "", False),
        ("", "나쁘다", False),
    ]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "가", "chosen": "나", "rejected": "나"}, "the same as the chosen"),
        ({"prompt": "가", "chosen": "나", "rejected": None}, "missing"),
        (
            {"prompt": "가", "completion": "나", "label": "perhaps"},
            "expected true or false",
        ),
    ],
)
def test_preferences_that_prefer_nothing_are_refused(write, row, reason):
    """Equal answers, a missing answer and an unclear label are reported with their line."""
    with pytest.raises(DataError, match=rf"a\.jsonl:1: .*{reason}"):
        read(write("a.jsonl", [row]))


TABLES = {
    "utf-8 with a mark, Windows line ends": (codecs.BOM_UTF8 + (HEAD + BODY).encode(), ""),
    "utf-16": ((HEAD + BODY).encode("utf-16"), "encoding UTF-16"),
    "utf-16 without a mark": ((HEAD + BODY).encode("utf-16-le"), "encoding UTF-16-LE, guessed"),
    "cp949": ((HEAD + BODY).encode("cp949"), "encoding CP949, guessed"),
    "semicolons": ((HEAD + BODY).replace(",", ";").encode(), "separated by a semicolon"),
    "tabs in a .csv": ((HEAD + BODY).replace(",", "\t").encode(), "separated by a tab"),
    "old Mac line ends": ((HEAD + BODY).replace("\r\n", "\r").encode(), ""),
    "Excel's empty columns": ((HEAD + BODY).replace("\r\n", ",,\r\n").encode(), ""),
    "title rows": (f"질병 분류,,\r\n,,\r\n{HEAD}{BODY}".encode(), "header in line 3"),
    "a title without commas": (f"질병 분류\r\n{HEAD}{BODY}".encode(), "header in line 2"),
    "a Korean header": ((HEAD + BODY).replace("kcd,en,ko", "코드,영문명,한글명").encode(), "한글명"),
    "a decomposed header": (
        unicodedata.normalize("NFD", (HEAD + BODY).replace("kcd,en,ko", "코드,영문명,한글명")).encode(),
        "한글명",
    ),
    "an unnamed column": (
        (HEAD + BODY).replace("\r\n", ",x\r\n").replace("ko,x", "ko,").encode(),
        "column 4 has no name; its 3 values unused",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_tables_are_read_as_people_save_them(write, name):
    """Encodings, delimiters, title rows and empty columns give the same three entries, with a note."""
    content, note = TABLES[name]
    kind, found, (said,) = read(write("a.csv", content))
    assert kind == "dictionary"
    assert [(e.group, e.en, e.ko) for e in found] == [
        (c[:3], en, ko) for c, en, ko in CODES
    ]
    assert note in said


def test_quotes_in_a_tsv_are_characters(write):
    """A TSV has no quoting: quotes inside or around a cell stay as they are."""
    path = write("a.tsv", 'kcd\ten\tko\nI10\t"Essential" hypertension\t고혈압\n')
    assert [e.en for e in read(path)[1]] == ['"Essential" hypertension']


def test_encoding_delimiter_and_header_can_be_named(write):
    """The three keys are obeyed where content would be ambiguous; header 0 numbers the columns."""
    text = "a|b;c\n1|2;3\n"
    path = write("a.csv", text.encode("cp1252"))
    columns = {"ko": "a", "en": "b;c"}
    reader = Reader(
        DictionarySpec(type="dictionary", train=path, delimiter="|", columns=columns)
    )
    assert [(e.ko, e.en) for e in reader.records(path).records] == [("1", "2;3")]
    path = write("b.csv", "첫째,first\n둘째,second\n")
    columns = {"ko": "1", "en": "2"}
    reader = Reader(
        DictionarySpec(type="dictionary", train=path, header=0, columns=columns)
    )
    assert [(e.ko, e.en) for e in reader.records(path).records] == [
        ("첫째", "first"),
        ("둘째", "second"),
    ]


def test_a_cell_may_be_long(write):
    """A clinical note of 300,000 characters is one cell."""
    note = "환자는 고혈압으로 왔다. " * 23_000
    _, found, _ = read(write("a.csv", f"text\n{note}\n짧다.\n"))
    assert [len(t.text) for t in found] == [len(note.strip()), 3]


def test_exams_without_a_header_are_recognised(write):
    """Question, options and a letter in every row: read as columns without a header line."""
    lines = exam(lambda q, o, k: f'"{q}",{",".join(o)},{"ABCD"[k]}')
    kind, found, (note,) = read(write("a.csv", "\n".join(lines) + "\n"))
    assert (kind, [q.content for q in found]) == ("mcq", ["혈당", "천식"])
    assert "no header line" in note


def test_containers_hold_the_same_rows(tmp_path, write):
    """JSON, parquet, Arrow, saved data sets, .gz, .zst, folders and globs give what JSON lines give."""
    disable_progress_bars()
    rows = EXAMS["kmmlu"]
    lines = write("a.jsonl", rows)
    text = "".join(json.dumps(r) + "\n" for r in rows).encode()
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(text))
    with pa.output_stream(str(tmp_path / "c.jsonl.zst"), compression="zstd") as stream:
        stream.write(text)
    write("d.json", json.dumps(rows))
    write("e.json", json.dumps({"version": 1, "data": rows}))
    write("f.json", text)  # JSON lines under the wrong suffix
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "g.parquet")
    made = Dataset.from_list(rows)
    made.save_to_disk(str(tmp_path / "h"))
    DatasetDict({"train": made, "test": made.select([1])}).save_to_disk(
        str(tmp_path / "i")
    )
    (arrow,) = (tmp_path / "h").glob("*.arrow")
    (tmp_path / "j").mkdir()
    for number, row in enumerate(rows):
        write(f"j/part-{number}.jsonl", [row])
    expected = read(lines)[1]
    names = [
        "b.jsonl.gz",
        "c.jsonl.zst",
        "d.json",
        "e.json",
        "f.json",
        "g.parquet",
        "h",
        "i",
        "j",
    ]
    for name in (*names, str(arrow), "j/*.jsonl"):
        found = read(str(tmp_path / name))[1]
        assert [q.content for q in found] == [q.content for q in expected], name


def test_folders_with_splits_give_each_setting_its_own(tmp_path, write):
    """train, validation and test in file or split names are read by train, dev and test."""
    for name in ("train-00000-of-00001", "validation-00000-of-00001"):
        (tmp_path / "data").mkdir(exist_ok=True)
        write(f"data/{name}.jsonl", [{"text": name}])
    folder = str(tmp_path)
    assert [s.path.stem[:5] for s in find(folder, "train")] == ["train"]
    assert [s.path.stem[:5] for s in find(folder, "dev")] == ["valid"]
    with pytest.raises(InputError, match="no file of the test split"):
        find(folder, "test")


def test_names_are_found_in_either_unicode_form(tmp_path):
    """A file name in decomposed Hangul, as macOS and zip files have it, is found by its composed name."""
    (tmp_path / unicodedata.normalize("NFD", "자료")).mkdir()
    name = unicodedata.normalize("NFD", "본문.txt")
    (tmp_path / unicodedata.normalize("NFD", "자료") / name).write_text("글이다.")
    assert [t.text for t in read(f"{tmp_path}/자료/본문.txt")[1]] == ["글이다."]
    assert len(find(f"{tmp_path}/자료/본*.txt")) == 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["B", "c"], [1, 2]),
        (["(B)", "C."], [1, 2]),
        (["②", "③"], [1, 2]),
        (["2번", 4], [1, 3]),
        (["혈당", "천식"], [1, 2]),
        (["정답 아님", "천식"], None),
    ],
)
def test_answers_are_read_as_people_write_them(write, values, expected):
    """Letters, (A), ①, numbers and the option's own text; anything else is reported."""
    rows = [
        {"question": q, "options": list(o), "answer": a}
        for q, o, a in zip(ASKED, OPTIONS, values, strict=True)
    ]
    if expected is None:
        with pytest.raises(DataError, match="text of one option"):
            read(write("a.jsonl", rows))
    else:
        assert [q.answer for q in read(write("a.jsonl", rows))[1]] == expected


@given(
    right=st.lists(st.integers(0, 3), min_size=2, max_size=8),
    style=st.sampled_from("A1①0t"),
)
def test_every_way_of_writing_answers_gives_the_same_index(right, style):
    """Whatever the style, the index is the same as soon as the style is clear."""
    options = ["요산", "혈당", "안압", "폐활량"]
    ways = {"A": "ABCD", "1": "1234", "①": "①②③④", "0": "0123", "t": options}
    rows = [answers.Given(ways[style][k], options) for k in right]
    counting = answers.detect(rows)
    if counting is None:
        assert style in "01①"
        assert 0 not in right or 3 not in right
        return
    assert [answers.index(row, counting) for row in rows] == right


def test_an_option_that_is_not_a_number_is_missing(write):
    """NaN, as pandas writes an empty cell, is a missing option; so is a -1 a missing answer."""
    rows = exam(
        lambda q, o, k: {
            "question": q,
            **lettered(o),
            "E": float("nan"),
            "answer": "ABCD"[k],
        }
    )
    assert [len(q.options) for q in read(write("a.jsonl", rows))[1]] == [4, 4]
    rows = exam(
        lambda q, o, k: {
            "question": q,
            **lettered(o, ("opa", "opb", "opc", "opd")),
            "cop": -1,
        }
    )
    with pytest.raises(DataError, match="unlabelled test split"):
        read(write("b.jsonl", rows))


def test_many_bad_rows_of_a_kind_are_a_count(write):
    """Of 3,000 bad rows the first ten are named, and one line counts each kind of the others."""
    rows = [{"kcd": f"A{i:04}", "en": "", "ko": "가"} for i in range(3000)]
    rows[2000:2500] = [{"kcd": f"A{i:04}", "ko": "가"} for i in range(500)]
    with pytest.raises(DataError) as caught:
        read(write("a.jsonl", rows))
    lines = str(caught.value).split("\n")
    assert len(lines) == 12
    assert [line.split(": ")[0][-1] for line in lines[:3]] == ["1", "2", "3"]
    assert "a.jsonl:11: en" in lines[10]
    assert "and 2,489 more of this kind" in lines[10]
    assert "a.jsonl:2001: en" in lines[11]
    assert "and 499 more of this kind" in lines[11]


def test_nested_fields_are_mapped_by_their_path(write):
    """``columns = {text = "data.text"}`` reaches into objects; the refusal names such paths."""
    path = write("a.jsonl", [{"data": {"body": "글이다."}, "id": 1}])
    with pytest.raises(InputError, match=r"data\.body, id"):
        read(path)
    assert read(path, columns={"text": "data.body"})[1][0].text == "글이다."


def test_every_layout_is_recognised_by_what_shows_it():
    """No layout hides another: the columns that show one lead to it."""
    for layout in LAYOUTS:
        ways = product(*(need.split("|") for need in layout.shown_by))
        assert any(recognise(columns, (layout.kind,)) == layout for columns in ways)


def test_columns_are_mapped_by_their_usual_names_too(write):
    """``question`` and ``answer`` stand for an instruction's prompt and completion; others are refused with the names."""
    path = write("a.jsonl", [{"asked": "무엇인가?", "said": "답이다."}])
    kind, (record,), _ = read(path, columns={"question": "asked", "answer": "said"})
    assert kind == "instruction"
    assert [m.content for m in record.messages] == ["무엇인가?", "답이다."]
    with pytest.raises(InputError, match=r"reply.*prompt, input, completion"):
        read(path, columns={"question": "asked", "answer": "said", "reply": "said"})

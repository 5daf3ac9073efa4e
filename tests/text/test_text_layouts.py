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
    assert f"; {len(EXAMS[layout])} rows" in note


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


USER, GOOD, WEAK = (
    {"role": r, "content": c}
    for r, c in (
        ("user", "열이 나면?"),
        ("assistant", "쉰다."),
        ("assistant", "모른다."),
    )
)
PAIRS = {
    "hh": ({"chosen": "\n\nHuman: 열이 나면?\n\nAssistant: 쉰다.",
            "rejected": "\n\nHuman: 열이 나면?\n\nAssistant: 모른다."}, ""),
    "hh with a prompt": ({"prompt": "\n\nHuman: 열이 나면?\n\nAssistant:", "chosen": " 쉰다.",
                          "rejected": " 모른다."}, ""),
    "ultrafeedback": ({"prompt": "열이 나면?", "chosen": [USER, GOOD], "rejected": [USER, WEAK],
                       "messages": [USER, GOOD], "score_chosen": 9.0}, "messages, score_chosen"),
    "orca": ({"system": "", "question": "열이 나면?", "chosen": "쉰다.", "rejected": "모른다."}, ""),
    "llama-factory": ({"conversations": [{"from": "human", "value": "열이 나면?"}],
                       "chosen": {"from": "gpt", "value": "쉰다."},
                       "rejected": {"from": "gpt", "value": "모른다."}}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_read_as_data_sets_publish_them(write, name):
    """Transcripts, messages, texts and single messages give the same pair; columns that nothing reads are named."""
    row, unused = PAIRS[name]
    kind, (pair,), (note,) = read(write("a.jsonl", [row]))
    assert kind == "preference"
    assert [(m.role, m.content) for m in pair.prompt] == [("user", "열이 나면?")]
    assert (pair.chosen, pair.rejected) == ("쉰다.", "모른다.")
    assert note.partition("; not used: ")[2] == unused


def test_labelled_answers_may_be_messages(write):
    """TRL's unpaired layout has lists of messages as prompt and completion."""
    rows = [
        {"prompt": [USER], "completion": [a], "label": a is GOOD} for a in (GOOD, WEAK)
    ]
    _, found, _ = read(write("a.jsonl", rows))
    assert [(p.prompt[0].content, p.chosen, p.rejected) for p in found] == [
        ("열이 나면?", "쉰다.", ""),
        ("열이 나면?", "", "모른다."),
    ]


def test_earlier_turns_of_an_instruction_come_first(write):
    """``history`` has pairs of question and answer; anything else in it is reported."""
    row = {"instruction": "또?", "output": "물", "history": [["열이 나면?", "쉰다."]]}
    _, (found,), _ = read(write("a.jsonl", [row]))
    assert [m.content for m in found.messages] == ["열이 나면?", "쉰다.", "또?", "물"]
    with pytest.raises(DataError, match=r"a\.jsonl:1: history: .*pairs"):
        read(write("a.jsonl", [row | {"history": ["열이 나면?"]}]))


ASKS = {
    "cmb": lambda q, o, k: {"question": q, "option": lettered(o), "answer": "ABCD"[k]},
    "openbookqa": lambda q, o, k: {"question_stem": q, "answerKey": "ABCD"[k],
                                   "choices": {"text": list(o), "label": list("ABCD")}},
    "hellaswag": lambda q, o, k: {"ctx": q, "endings": list(o), "label": str(k + 1)},
    "a list with one answer": lambda q, o, k: {"question": q, "options": list(o), "answer": ["ABCD"[k]]},
}  # fmt: skip


@pytest.mark.parametrize("name", ASKS)
def test_further_exams_are_recognised(write, name):
    """Other names for question and options, and an answer in a list, give the same questions."""
    last = [{**ASKS[name](ASKED[0], OPTIONS[0], 3)}]  # shows that numbers count from 1
    kind, found, _ = read(write("a.jsonl", exam(ASKS[name]) + last))
    assert kind == "mcq"
    assert [(q.question, q.content) for q in found[:2]] == [
        (asked, options[right])
        for asked, options, right in zip(ASKED, OPTIONS, RIGHT, strict=True)
    ]


@pytest.mark.parametrize("name", ["passage", "article", "paragraph", "context", "지문"])
def test_a_questions_passage_comes_first(write, name):
    """A question about a text is asked with the text before it."""
    rows = exam(lambda q, o, k: {name: "지문이다.", "question": q, "options": list(o), "answer": "ABCD"[k]})  # fmt: skip
    _, found, _ = read(write("a.jsonl", rows))
    assert [q.question for q in found] == [f"지문이다.\n\n{q}" for q in ASKED]


def test_options_in_a_cell_are_json(write):
    """A CSV with lists in it has them as JSON; Python's way to print a list is refused with the cell."""
    cell = json.dumps(OPTIONS[0], ensure_ascii=False).replace('"', '""')
    head = "question,options,answer\n"
    _, (found,), _ = read(write("a.csv", f'{head}{ASKED[0]},"{cell}",B\n'))
    assert (found.options, found.content) == (OPTIONS[0], "혈당")
    with pytest.raises(DataError, match=r"a\.csv:2: options: .*JSON.*\['요산'"):
        read(write("a.csv", f'{head}{ASKED[0]},"{list(OPTIONS[0])}",B\n'))


@pytest.mark.parametrize("names", [("korean", "english"), ("한글", "영문"), ("한국어", "영어")])  # fmt: skip
def test_terms_are_recognised_by_the_names_of_the_languages(write, names):
    """Columns named after Korean and English are a dictionary, and the note names them."""
    row = dict(zip(names, ("통풍", "gout"), strict=True))
    kind, (found,), (note,) = read(write("a.jsonl", [row]))
    assert (kind, found.ko, found.en) == ("dictionary", "통풍", "gout")
    assert f"({names[0]}, {names[1]})" in note


def test_translations_are_read_from_their_object(write):
    """The hub's layout of translations is an object with a text for each language."""
    path = write("a.jsonl", [{"translation": {"en": "gout", "ko": "통풍"}}])
    kind, (found,), (note,) = read(path)
    assert (kind, found.ko, found.en) == ("dictionary", "통풍", "gout")
    assert "translation.ko" in note
    assert "not used" not in note


def test_tables_may_be_json_by_column(write):
    """Lists by column, and objects by number as pandas writes them, are rows; one row of lists is not."""
    lists = {"question": list(ASKED), "answer": list(ANSWERED)}
    numbered = {k: {str(i): x for i, x in enumerate(v)} for k, v in lists.items()}
    for whole in (lists, numbered):
        kind, found, _ = read(write("a.json", json.dumps(whole)))
        assert kind == "instruction"
        assert [d.answer for d in found] == list(ANSWERED)
    one = {"prompt": [USER], "chosen": [GOOD], "rejected": [WEAK]}
    assert len(read(write("a.json", json.dumps(one)))[1]) == 1


def test_json_with_several_splits_is_refused(write):
    """Which of several lists is meant is not guessed."""
    path = write("a.json", json.dumps({"train": [{"text": "가"}], "test": [{"text": "나"}]}))  # fmt: skip
    with pytest.raises(DataError, match=r"'train', 'test'; save each"):
        read(path)


def test_json_lines_are_recognised_in_a_text_file(write):
    """Objects by line are rows under .txt too, with a note; a text that begins with a brace is text."""
    path = write("a.txt", '{"text": "가"}\n{"text": "나"}\n')
    _, found, (note,) = read(path)
    assert [t.text for t in found] == ["가", "나"]
    assert "JSON lines" in note
    assert [t.text for t in read(write("a.txt", "{x}\n\n나\n"))[1]] == ["{x}", "나"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.txt"])
def test_a_pointer_is_not_data(write, name):
    """What git leaves in place of a large file names the command that fetches it."""
    text = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    with pytest.raises(DataError, match="git lfs pull"):
        read(write(name, text))

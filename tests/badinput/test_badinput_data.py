"""Wrong rows, whatever the reader: file, line and column are named, and nothing is run."""

from __future__ import annotations

import gzip
import json

import pytest

CONFIG = """
name = "own"
[base]
type = "hf"
id = "tiny-gemma"
[run]
threads = 1
[phases.one]
adapter = {{type = "lora", rank = 2, alpha = 4}}
optimizer = {{type = "sgd"}}
train = {{steps = 1}}
data = {{type = "{kind}", train = "{file}", max_length = 64{more}}}
"""
ENTRY = {
    "ko": "당뇨병",
    "en": "diabetes",
    "definition": "혈당이 높은 병",
    "specialty": "내과",
}
QUESTION = {
    "question": "혈당을 낮추는 것은?",
    "options": ["인슐린", "글루카곤", "코르티솔"],
    "answer": 0,
}
ZERO = ', answers = "0"'


def rows(*values):
    """Return JSON lines."""
    return "".join(json.dumps(v, ensure_ascii=False) + "\n" for v in values)


def parquet(path):
    """Write a parquet file that is cut short."""
    path.write_bytes(b"PAR1" + b"\x15\x04" * 50)


# kind of data, file, content, further settings, what is said
CASES = {
    "a missing file": ("text", "x.jsonl", None, "", "x.jsonl", "no such file"),
    "an empty folder": ("text", "x.jsonl", lambda p: p.mkdir(), "", "x.jsonl", "no file to read"),
    "a link in a circle": ("text", "x.jsonl", lambda p: p.symlink_to(p), "", "x.jsonl"),
    "another suffix": ("text", "x.docx", "text", "", "x.docx", "expected a file that ends in .txt"),
    "no suffix": ("text", "x", "text", "", "expected a file that ends in"),
    "a pickle": ("text", "x.pkl", b"\x80\x04.", "", "x.pkl", "expected a file that ends in"),
    "a path upwards": ("text", "../../../none.jsonl", None, "", "none.jsonl", "no such file"),
    "a package that is none": ("text", "package:no_such_package/x.jsonl", None, "", "is not installed"),
    "a path out of a package": ("text", "package:mgk_core/../../../etc/x.jsonl", None, "", "x.jsonl"),
    "a hub without a name": ("text", "hub:", None, "", "expected hub:OWNER/NAME"),
    "a hub with an unknown key": ("text", "hub:a/b?splt=x", None, "", "unknown key 'splt'", "did you mean 'split'"),
    "an empty jsonl": ("text", "x.jsonl", "", "", "x.jsonl", "has no rows"),
    "an empty txt": ("text", "x.txt", "\n\n", "", "x.txt", "has no rows"),
    "an empty csv": ("text", "x.csv", "", "", "x.csv", "has no rows"),
    "a header alone": ("text", "x.csv", "text\n", "", "x.csv", "has no rows"),
    "zipped": ("text", "x.jsonl", gzip.compress(b'{"text": "a"}' * 9), "", "x.jsonl:1"),
    "utf-16 cut short": ("text", "x.jsonl", rows({"text": "abc"}).encode("utf-16")[:-1], "", "x.jsonl", "utf-16"),
    "utf-8 named cp949": ("text", "x.txt", "한글이다", ', encoding = "cp949"', "x.txt:1", "encoding = 'utf-8'"),
    "cp949 named utf-8": (
        "text", "x.txt", "한국어 문장".encode("cp949"), ', encoding = "utf-8"', "x.txt:1", "encoding = 'cp949'",
    ),
    "an encoding that is none": ("text", "x.txt", "a", ', encoding = "utf-9"', "utf-9"),
    "a latin-1 file": ("text", "x.txt", "Fièvre élevée à Genève".encode("latin-1"), "", "x.txt:1", "cp1252"),
    "a gzip cut short": ("text", "x.txt.gz", gzip.compress(b"some text " * 99)[:-9], "", "x.txt.gz", "decompressed"),
    "a gzip that is none": ("text", "x.txt.gz", b"plain text", "", "x.txt.gz", "decompressed"),
    "a zst that is none": ("text", "x.txt.zst", b"plain text", "", "x.txt.zst"),
    "a spreadsheet": ("text", "x.xlsx", b"PK", "", "x.xlsx", "save it as CSV"),
    "a json array cut short": ("text", "x.json", '[{"text": "a"},\n{"text": "b"}\n', "", "x.json:3", "not closed"),
    "a json array with a hole": ("text", "x.json", '[{"text": "a"},\n{"text": }]', "", "x.json:2", "is not JSON"),
    "a json array of numbers": ("text", "x.json", "[1,\n2]", "", "x.json:2", "expected a JSON object"),
    "a glob that matches nothing": ("text", "none*.jsonl", None, "", "none*.jsonl", "matches no"),
    "a delimiter of two characters": ("text", "x.csv", "text\na\n", ', delimiter = "::"', "delimiter"),
    "columns that nothing recognises": ("auto", "x.jsonl", rows({"foo": "a"}), "", "x.jsonl", "foo", "set type"),
    "a line that is not utf-8": (
        "text", "x.jsonl", rows({"text": "a"}).encode() + b'{"text": "\xff"}\n', "", "x.jsonl:2", "not UTF-8",
    ),
    "not json": ("text", "x.jsonl", '{"text": "a"}\n{"text": \n', "", "x.jsonl:2", "is not JSON"),
    "json cut short": ("text", "x.jsonl", '{"text": "a', "", "x.jsonl:1", "is not JSON"),
    "a json list": ("text", "x.jsonl", "[1, 2]\n", "", "x.jsonl:1", "expected a JSON object, got list"),
    "a json number": ("text", "x.jsonl", "3\n", "", "x.jsonl:1", "expected a JSON object, got int"),
    "json nested without end": ("text", "x.jsonl", "[" * 100_000 + "\n", "", "x.jsonl:1", "is not JSON"),
    "a number without end": ("text", "x.jsonl", '{"text": ' + "9" * 5000 + "}\n", "", "x.jsonl:1", "is not JSON"),
    "a text that is a number": ("text", "x.jsonl", rows({"text": 3}), "", "x.jsonl:1", "expected text, got 3"),
    "a text that is missing": ("text", "x.jsonl", rows({"txt": "a"}), "", "x.jsonl", "text"),
    "a text that is empty": ("text", "x.jsonl", rows({"text": "  "}), "", "x.jsonl:1", "text"),
    "a text that is null": ("text", "x.jsonl", rows({"text": None}), "", "x.jsonl:1", "text"),
    "a lone surrogate": ("text", "x.jsonl", '{"text": "\\ud800 a"}\n', "", "x.jsonl:1", "surrogate"),
    "two columns of one name": ("text", "x.csv", "text,text\na,b\n", "", "x.csv:1", "two columns of one name"),
    "a cell too many": ("text", "x.csv", "text,more\na,b\na,b,c\n", "", "x.csv:3", "expected 2 columns, found 3"),
    "an open quote": ("text", "x.csv", 'text\n"open\n', "", "x.csv:2", "cannot be read"),
    "a csv with null bytes": ("text", "x.csv", "text\na\0b\n", "", "x.csv:2", "null byte"),
    "a parquet that is none": ("text", "x.parquet", b"no parquet", "", "x.parquet", "cannot be read as parquet"),
    "a parquet cut short": ("text", "x.parquet", parquet, "", "x.parquet", "cannot be read as parquet"),
    "a column that is none": (
        "text", "x.jsonl", rows({"text": "a"}), ', columns = {text = "body"}', "x.jsonl", "body",
    ),
    "a field that is none": ("text", "x.jsonl", rows({"text": "a"}), ', columns = {txet = "text"}', "txet"),
    "a text longer than allowed": (
        "text", "x.jsonl", rows({"text": "가나다 " * 400}), ', overflow = "error"', "x.jsonl:1",
    ),
    "everything held out": ("text", "x.jsonl", rows({"text": "a"}), ", test_share = 0.5", "no training examples are left", "test_share"),
    "an entry without a term": ("dictionary", "x.jsonl", rows({**ENTRY, "ko": ""}), "", "x.jsonl:1", "ko"),
    "an entry that is a list": ("dictionary", "x.jsonl", rows({**ENTRY, "en": ["a"]}), "", "x.jsonl:1", "en"),
    "an entry without its other half": ("dictionary", "x.jsonl", rows({"ko": "당뇨병"}), "", "x.jsonl:1", "en", "missing"),
    "a direction that is none": (
        "dictionary", "x.jsonl", rows(ENTRY), ', directions = ["ko-fr"]', "directions: expected some of",
    ),
    "no options": ("mcq", "x.jsonl", rows({"question": "a", "answer": 0}), ZERO, "x.jsonl:1", "options"),
    "one option": ("mcq", "x.jsonl", rows({**QUESTION, "options": ["a"]}), ZERO, "x.jsonl:1", "options"),
    "an answer beyond the options": ("mcq", "x.jsonl", rows({**QUESTION, "answer": 7}), ZERO, "x.jsonl:1", "answer"),
    "an answer that is no letter": ("mcq", "x.jsonl", rows({**QUESTION, "answer": "?"}), "", "x.jsonl:1", "answer"),
    "an answer that is missing": (
        "mcq", "x.jsonl", rows({k: v for k, v in QUESTION.items() if k != "answer"}), "", "x.jsonl:1", "answer",
    ),
    "options that are a text": ("mcq", "x.jsonl", rows({**QUESTION, "options": "abc"}), ZERO, "x.jsonl:1", "options"),
    "options that are no texts": ("mcq", "x.jsonl", rows({**QUESTION, "options": [["a"], {}, None]}), ZERO, "x.jsonl:1", "options"),
    "a question of nothing": ("mcq", "x.jsonl", rows({**QUESTION, "question": ""}), ZERO, "x.jsonl:1", "question"),
    "several at once": ("text", "x.jsonl", rows({"text": 1}, {"text": "a"}, {"text": 2}), "", "x.jsonl:1", "x.jsonl:3"),
    "a name with control characters": ("text", "x\\u001b[31m.jsonl", None, "", "no such file"),
    "a name with a right-to-left mark": ("text", "x\\u202ey.jsonl", None, "", "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_data(answered, name):
    """Each is answered with the file, the line where there is one, and what is wrong there."""
    kind, file, content, more, *words = CASES[name]
    files = {"c.toml": CONFIG.format(kind=kind, file=file, more=more)}
    if content is not None:
        files[file] = content
    answered(
        ["run", "--config", "c.toml", "--out", "out", "--quiet"], *words, files=files
    )

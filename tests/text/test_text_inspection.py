"""``mgk data``: what it finds in files, without training on them."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from mgk_text import command
from mgk_text.inspection import inspect
from mgk_text.lengths import learnt_in
from mgk_text.load import load
from mgk_text.specs import AutoSpec

ROWS = [
    {"prompt": f"{i}번째 물음은 무엇인가? " * (1 + i), "completion": f"대답 {i}"}
    for i in range(9)
]


@pytest.fixture
def run(bundle, monkeypatch):
    """Return ``run(*arguments)``: the command on the tiny base."""
    monkeypatch.setattr(command, "_bundle", lambda base: bundle)
    return lambda *arguments: CliRunner().invoke(command.data, arguments)


def test_the_figures_are_those_of_the_training_set(bundle, write):
    """Counts, lengths and what a limit costs are what loading the same file gives."""
    path = write("a.jsonl", ROWS)
    found = inspect(AutoSpec(type="auto", train=(path,), max_length=4096), bundle)
    whole = [
        e
        for (e,) in load(
            AutoSpec(type="auto", train=path, max_length=4096), bundle
        ).train.rows
    ]
    lengths = found.lengths
    assert (found.type, found.rows, lengths.examples) == ("instruction", 9, 9)
    assert lengths.tokens == sum(len(e.ids) for e in whole)
    assert lengths.learnt == sum(map(learnt_in, whole))
    assert sum(b.count for b in lengths.bins) == 9
    assert lengths.longest == max(len(e.ids) for e in whole)
    assert lengths.bins[-1].first <= lengths.longest <= lengths.bins[-1].last
    (cut,) = [t for t in lengths.truncation if t.max_length == 64]
    longer = [e for e in whole if len(e.ids) > 64]
    lost = sum(label != -100 for e in longer for label in e.labels[64:])
    assert (cut.longer, cut.lost) == (len(longer), lost)
    assert cut.nothing == sum(all(x == -100 for x in e.labels[:64]) for e in longer) > 0


def test_examples_show_what_is_learnt(run, write):
    """Each example has its place and its text, the answer with its end marked, control codes escaped."""
    rows = [*ROWS[:1], {"prompt": "나쁜 \x1b[31m물음", "completion": "답"}]
    result = run(write("a.jsonl", rows))
    assert result.exit_code == 0
    assert "read as prompt and completion (prompt, completion); 2 rows" in result.output
    assert "a.jsonl:1" in result.output
    assert "⟦ 대답 0<eos>⟧" in result.output
    assert "\x1b" not in result.output
    assert "give --base for your own" in result.output


def test_bad_and_repeated_rows_have_their_places(run, write):
    """Bad rows are listed by file and line with exit code 2, repeated ones with the row they repeat."""
    path = write("a.jsonl", [*ROWS, ROWS[3], {"prompt": "가"}])
    result = run(path)
    assert result.exit_code == 2
    assert "1 row repeats an earlier one" in result.output
    assert f"{path}:10 = {path}:4" in result.output
    assert "1 bad row\n" in result.output
    assert f"{path}:11: completion" in result.output


def test_json_has_everything_that_is_drawn(run, write):
    """``--json`` prints one object with type, lengths, truncation, examples and problems."""
    result = run(
        write("a.jsonl", ROWS), "--json", "--max-length", "40", "--examples", "2"
    )
    found = json.loads(result.output)
    assert (found["type"], found["rows"], found["base"]) == (
        "instruction",
        9,
        "tiny-gemma",
    )
    assert 40 in [t["max_length"] for t in found["lengths"]["truncation"]]
    assert len(found["examples"]) == 2
    assert [p["learnt"] for p in found["examples"][0]["parts"]] == [False, True]
    assert found["problems"] == []


@pytest.mark.parametrize(
    ("rows", "kind", "examples"),
    [
        ([{"text": "글이다. " * 40}, {"text": "짧다."}], "text", 2),
        ([{"prompt": "가", "chosen": "나", "rejected": "다"}] * 2, "preference", 4),
        ([{"prompt": "가", "completion": "나", "label": False}], "preference", 1),
        ([{"question": "무엇?", "A": "가", "B": "나", "answer": "A"}], "mcq", 1),
    ],
)
def test_every_type_is_described(run, write, rows, kind, examples):
    """Text, pairs, labelled answers and questions: each type gives its examples."""
    found = json.loads(run(write("a.jsonl", rows), "--json").output)
    assert (found["type"], found["lengths"]["examples"]) == (kind, examples)


def test_type_and_columns_can_be_named(run, write):
    """A file that is not recognised is read with ``--type`` and ``--column``; a bad pair is refused."""
    path = write("a.jsonl", [{"body": "글이다.", "no": 1}])
    found = json.loads(
        run(path, "--type", "text", "--column", "text=body", "--json").output
    )
    assert (found["type"], found["rows"]) == ("text", 1)
    assert "expected FIELD=COLUMN" in run(path, "--column", "text").output


def test_files_are_read_as_the_data_section_reads_them(run, tmp_path):
    """``--encoding``, ``--delimiter``, ``--layout`` and ``--answers`` are those of the data table."""
    path = tmp_path / "a.csv"
    path.write_bytes(
        "question|A|B|answer\n무엇?|가|나|1\n누구?|다|라|1\n".encode("cp949")
    )
    asked = [str(path), "--encoding", "cp949", "--delimiter", "|", "--json"]
    plain = json.loads(run(*asked, "--answers", "1").output)
    assert (plain["type"], plain["rows"], plain["problems"]) == ("mcq", 2, [])
    text = "".join(part["text"] for part in plain["examples"][0]["parts"])
    assert "무엇?" in text
    other = json.loads(run(*asked, "--answers", "0").output)
    assert other["examples"] != plain["examples"]
    assert "kormedmcqa" in run(*asked, "--layout", "kormed").output
    assert "--delimiter" in run(str(path), "--delimiter", "||").output
    assert "--answers" in run(*asked, "--type", "text", "--answers", "1").output


def test_one_row_is_a_row(run, write):
    """Counts of one are in the singular."""
    result = run(write("a.jsonl", ROWS[:1]))
    assert "1 row\n" in result.output
    assert "1 rows" not in result.output


@pytest.mark.slow
def test_the_command_counts_with_the_tokenizer_of_a_base(bundle, write, tmp_path):
    """From the command line, on a base directory: the token counts are those of its tokenizer."""
    bundle.save(tmp_path / "base")
    path = write("a.txt", "고혈압은 혈관벽에 걸리는 압력이 높은 병이다.\n")
    arguments = ["data", path, "--base", str(tmp_path / "base"), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "mgk_cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ids = bundle.tokenizer("고혈압은 혈관벽에 걸리는 압력이 높은 병이다.")["input_ids"]
    assert (
        json.loads(done.stdout)["lengths"]["tokens"] == len(ids) + 1
    )  # and the end of the text


def test_rows_that_a_probe_asks_are_listed(run, write):
    """With ``--probe``, training rows that share thirteen words with a held-out row have both places."""
    long = " ".join(f"말{i}" for i in range(20))
    path = write("a.jsonl", [*ROWS, {"prompt": long, "completion": "답"}])
    probe = write("p.jsonl", [{"text": f"앞 {long} 뒤"}])
    result = run(path, "--probe", probe)
    assert result.exit_code == 0
    assert "contamination: 1 row shares text with a probe" in result.output
    assert f"{path}:10 shares" in result.output
    assert f"with {probe}:1" in result.output
    assert "contamination" not in run(path).output
    assert len(json.loads(run(path, "--probe", probe, "--json").output)["shared"]) == 1

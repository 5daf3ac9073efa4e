"""Training rows that are read when they are needed: the same batches as from memory, and a run that resumes."""

import json

import pytest

from mgk_core.contract.errors import DataError, InputError, Interrupted
from mgk_core.run.runner import resume_run, run_pipeline
from mgk_text import stream
from mgk_text.lines import Lines
from mgk_text.load import load
from mgk_text.sources import find
from mgk_text.specs import SPECS, AutoSpec

TEXTS = [f"{i}번째 글은 비장과 간에 대한 글이다. " * (1 + i % 7) for i in range(40)]
CHATS = [
    {
        "messages": [
            {"role": "user", "content": f"{i}번째 물음은 무엇인가?"},
            {"role": "assistant", "content": f"대답 {i}"},
        ]
    }
    for i in range(40)
]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    """Read a few rows at a time, so that small files have several chunks."""
    monkeypatch.setattr(Lines.chunks, "__defaults__", (7,))


def both(bundle, kind, **options):
    """Return the data of one file from memory and streamed."""
    return [
        load(SPECS[kind](type=kind, cache=False, stream=s, **options), bundle)
        for s in (False, True)
    ]


@pytest.mark.parametrize(
    ("kind", "rows", "options"),
    [
        ("text", [{"text": t} for t in TEXTS], {"length": 48, "max_length": 48}),
        ("text", [{"text": t} for t in TEXTS], {"length": 64, "limit": 9}),
        ("chat", CHATS, {"style": "plain"}),
        ("instruction", [{"prompt": t, "completion": "답"} for t in TEXTS],
         {"overflow": "drop", "max_length": 60, "style": "plain"}),
    ],
)  # fmt: skip
def test_batches_are_those_from_memory(bundle, write, kind, rows, options):
    """Split, packed, dropped and limited alike: every training row is the same tokens, in the same place."""
    path = write("a.jsonl", rows)
    memory, streamed = both(bundle, kind, train=path, **options)
    assert isinstance(streamed.train, stream.StreamRows)
    assert len(memory.train) == len(streamed.train)
    for row in (*range(len(memory.train)), 0):
        one, other = memory.train.batch([row]), streamed.train.batch([row])
        assert one.input_ids.tolist() == other.input_ids.tolist()
        assert one.labels.tolist() == other.labels.tolist()
    verify = [[b.input_ids.tolist() for b in d.verify] for d in (memory, streamed)]
    assert verify[0] == verify[1]


def test_no_row_stays_in_memory(bundle, write):
    """What is kept of a row is where it is: no text and no token ids."""
    path = write("a.jsonl", [{"text": t} for t in TEXTS])
    spec = SPECS["text"](type="text", train=path, stream=True, length=48)
    rows = load(spec, bundle).train
    kept = (rows.row_of, rows.piece_of, rows.sizes, rows.lines.starts)
    assert all(hasattr(one, "typecode") for one in (*kept, *rows.groups))
    from mgk_text import cache

    assert not any(cache._memory.values())


def test_a_changed_file_changes_the_digest(bundle, write):
    """The digest covers every token, so that a resumed run notices other data."""
    rows = [{"text": t} for t in TEXTS]
    digests = []
    for content in (rows, rows, [*rows[:-1], {"text": "다른 끝이다."}]):
        spec = AutoSpec(
            type="auto", train=write("a.jsonl", content), stream=True, cache=False
        )
        digests.append(load(spec, bundle).train.digest)
    assert digests[0] == digests[1] != digests[2]


def test_parquet_is_read_through_lines(bundle, write, tmp_path):
    """A Parquet file gives the batches of the same rows as JSON lines."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'mgk[data]'")
    import pyarrow as pa

    rows = [{"text": t} for t in TEXTS]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    digests = {
        load(
            SPECS["text"](type="text", train=path, stream=True, cache=False), bundle
        ).train.digest
        for path in (write("b.jsonl", rows), str(tmp_path / "a.parquet"))
    }
    assert len(digests) == 1


def test_bad_rows_are_named_and_can_be_left_out(bundle, write):
    """Lines that are not JSON and rows without the field are errors with their lines; or they are skipped."""
    lines = [json.dumps({"text": t}, ensure_ascii=False) for t in TEXTS[:9]]
    lines[2], lines[5] = "{broken", json.dumps({"text": ""})
    path = write("a.jsonl", "\n".join(lines) + "\n")
    spec = {"type": "text", "train": path, "stream": True, "cache": False}
    with pytest.raises(DataError, match=r"a\.jsonl:3(.|\n)*a\.jsonl:6"):
        load(SPECS["text"](**spec), bundle)
    data = load(SPECS["text"](**spec, skip_bad_rows=True), bundle)
    assert any("2 bad rows left out" in note for note in data.notes)


def test_repeated_and_held_out_rows_are_found(bundle, write):
    """Deduplication and contamination act row by row as they do in memory."""
    shared = TEXTS[6] + "끝에 오는 말은 하나뿐인 말이다."
    path = write("a.jsonl", [{"text": t} for t in (*TEXTS[:6], TEXTS[3], shared)])
    test = write("t.jsonl", [{"text": shared}])
    options = {
        "train": path, "test": test, "deduplicate": True, "contamination": "drop",
    }  # fmt: skip
    memory, streamed = both(bundle, "text", **options)
    assert len(memory.train) == len(streamed.train)
    one, other = (d.train.batch(range(len(d.train))) for d in (memory, streamed))
    assert one.input_ids.tolist() == other.input_ids.tolist()
    with pytest.raises(DataError, match="contamination"):
        both(bundle, "text", train=path, test=test, contamination="refuse")


@pytest.mark.parametrize(
    ("kind", "options", "word"),
    [
        ("mcq", {}, "stream"),
        ("text", {"test_share": 0.1}, "test_share"),
        ("text", {"weights": (2.0,)}, "weights"),
    ],
)
def test_what_needs_all_rows_is_refused(bundle, write, kind, options, word):
    """Other types, shares and mixtures are errors that say what to do instead."""
    path = write("a.jsonl", [{"text": t} for t in TEXTS])
    with pytest.raises(InputError, match=word):
        load(SPECS[kind](type=kind, train=path, stream=True, **options), bundle)


def test_a_compressed_file_is_refused(write):
    """Rows of a compressed file have no places to be read from."""
    path = write("a.jsonl.gz", b"\x1f\x8b")
    with pytest.raises(InputError, match="not compressed"):
        Lines.of(find(path))


CONFIG = """
name = "small"
[base]
type = "hf"
id = "tiny-gemma"
[run]
threads = 1
[defaults]
optimizer = {type = "adamw", lr = 0.01}
train = {steps = 6, batch_size = 4, checkpoint_steps = 2}
adapter = {type = "lora", rank = 2, alpha = 6, targets = ["*q_proj"]}
[phases.one.data]
type = "text"
length = 48
"""


def test_a_stopped_run_ends_in_the_same_digests(write, tmp_path):
    """Stopped amid its steps and resumed, a streamed run has the ledger of one that was not, and of memory."""
    (tmp_path / "small.toml").write_text(CONFIG, encoding="utf-8")
    path = write("a.jsonl", [{"text": t} for t in TEXTS])
    sets = {"phases.one.data.train": path, "phases.one.data.stream": True}

    def stop(event):
        if event["event"] == "checkpoint" and event["step"] == 2:
            raise KeyboardInterrupt

    whole = tmp_path / "whole"
    run_pipeline(None, out=whole, config=tmp_path / "small.toml", overrides=sets)
    memory = {**sets, "phases.one.data.stream": False}
    run_pipeline(
        None, out=tmp_path / "memory", config=tmp_path / "small.toml", overrides=memory
    )
    with pytest.raises(Interrupted):
        run_pipeline(
            None, out=tmp_path / "cut", config=tmp_path / "small.toml",
            overrides=sets, sink=stop,
        )  # fmt: skip
    resume_run(tmp_path / "cut")
    merged = [
        json.loads((tmp_path / name / "ledger.json").read_text())["phases"][0]["merged"]
        for name in ("whole", "memory", "cut")
    ]
    assert merged[0] == merged[1] == merged[2]

"""Every key of the data settings has an effect."""

import csv
import io
import json

import attrs
import pytest

from mgk_core.contract.errors import MgkError
from mgk_text import cache
from mgk_text.load import load
from mgk_text.specs import SPECS

# Pictures need a base that sees them: tests/hf/test_hf_pictures.py.
KINDS = {kind: spec for kind, spec in SPECS.items() if kind != "image-chat"}
FIRST = {
    "text": "text", "dictionary": "ko", "mcq": "question",
    "chat": "messages", "instruction": "prompt", "preference": "prompt",
}  # fmt: skip
OTHER = "\u1112\u1161\u11ab" + "글"  # decomposed and composed Hangul


def table(rows):
    """Return rows as CSV text, lists as JSON in a cell."""
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(rows[0])
    for row in rows:
        writer.writerow(
            v if isinstance(v, str) else json.dumps(v) for v in row.values()
        )
    return text.getvalue()


def changed(row):
    """Return a row that begins alike and ends otherwise."""
    row = json.loads(json.dumps(row))
    for key in ("text", "definition", "question", "completion", "chosen"):
        if key in row:
            row[key] += " 그렇다."
    if "messages" in row:
        row["messages"][-1]["content"] += " 그렇다."
    return row


@pytest.fixture
def sources(write):
    """Small files of each kind, one of them with a bad row, and a text file."""
    topics = "가나다라마바사아자차카타파하"
    rows = {
        "text": [{"text": f"{c}에 대한 글이다. {OTHER} " * 3, "other": f"{c} 다른 열의 글이다."} for c in topics],
        "dictionary": [{"ko": c, "en": f"term {c}", "definition": f"{c}와 같은 뜻이다.", "other": c * 2} for c in topics],
        "mcq": [
            {"question": f"{c}는 무엇인가?", "other": c, "reasoning": f"{c}는 첫째이다.", "answer": 1 + i % 3,
             "A": c + "하나", "B": c + "둘", "C": c + "셋", "D": c + "넷"}
            for i, c in enumerate(topics)
        ],
    }  # fmt: skip
    asked = [(f"{c}는 무엇인가?", f"{c}는 글자이다. {OTHER}") for c in topics]
    rows["chat"] = [
        {
            "messages": [
                {"role": "user", "content": q},
                {"role": "assistant", "content": a},
            ]
        }
        | {
            "other": [
                {"role": "user", "content": q + "?"},
                {"role": "assistant", "content": a},
            ]
        }
        for q, a in asked
    ]
    rows["instruction"] = [
        {"prompt": q, "completion": a, "other": q + "?"} for q, a in asked
    ]
    rows["preference"] = [
        {"prompt": q, "chosen": a, "rejected": "모른다.", "other": q + "?"}
        for q, a in asked
    ]
    made = {kind: write(f"{kind}.jsonl", found) for kind, found in rows.items()}
    made["bad"] = {
        kind: write(f"bad-{kind}.jsonl", [*found, {"nothing": 1}])
        for kind, found in rows.items()
    }
    made["more"] = {
        kind: write(f"more-{kind}.jsonl", [changed(r) for r in found])
        for kind, found in rows.items()
    }
    made["csv"] = {
        kind: write(f"{kind}.csv", table(found)) for kind, found in rows.items()
    }
    made["txt"] = write("a.txt", "첫 줄이다.\n둘째 줄이다.\n\n셋째 줄이다.\n")
    made["mmlu"] = write(
        "mmlu.csv", "What?,one,two,three,four,C\nWhich?,one,two,three,four,A\n"
    )
    made["kor"] = write(
        "kor.jsonl", [r | {"cot": "다른 까닭이다."} for r in rows["mcq"]]
    )
    made["kcd"] = write(
        "kcd.jsonl", [r | {"code": f"{r['ko']}00"} for r in rows["dictionary"]]
    )
    return made


def changes(kind, s):
    """Return key → (what is set in both, what is set in one)."""
    both = {"dev_share": 0.2, "test_share": 0.3}
    shared = {
        "train": ({}, {"train": s["bad"][kind]}),
        "dev": ({}, {"dev": s[kind]}),
        "test": ({}, {"test": s[kind]}),
        "dev_share": ({}, {"dev_share": 0.5}),
        "test_share": ({}, {"test_share": 0.5}),
        "columns": (
            {},
            {"columns": {FIRST[kind]: "other"}},
        ),
        "encoding": ({}, {"encoding": "cp949"}),
        "delimiter": ({"train": s["csv"][kind]}, {"delimiter": "|"}),
        "header": ({"train": s["csv"][kind]}, {"header": 2}),
        "skip_bad_rows": ({"train": s["bad"][kind]}, {"skip_bad_rows": True}),
        "normalise": ({"columns": {}}, {"normalise": "none"}),
        "weights": ({}, {"weights": (2.5,)}),
        "interleave": (
            {"train": (s[kind], s["more"][kind]), "limit": 6},
            {"interleave": True},
        ),
        "deduplicate": ({"train": (s[kind], s[kind])}, {"deduplicate": True}),
        "contamination": ({"test": s[kind]}, {"contamination": "refuse"}),
        "contamination_words": (
            {"test": s["more"][kind], "contamination": "drop"},
            {"contamination_words": 2},
        ),
        "limit": ({}, {"limit": 3}),
        "stream": ({}, {"stream": True}),
        "max_length": ({"dev": s[kind]}, {"max_length": 10}),
        "seed": (both, {"seed": 1}),
        "probe": (both, {"probe": "mine"}),
        "kl_items": ({"test": s[kind]}, {"kl_items": 2}),
        "cache": ({}, {"cache": False}),
        "base_probes": ({}, {"base_probes": {"base": s["text"]}}),
        "base_questions": ({}, {"base_questions": {"exam": s["mmlu"]}}),
        "base_layout": (
            {"base_questions": {"exam": s["mmlu"]}},
            {"base_layout": "medqa"},
        ),
        "calibration": ({}, {"calibration": s["text"]}),
        "calibration_rows": ({"calibration": s["text"]}, {"calibration_rows": 2}),
        "calibration_tokens": ({"calibration": s["text"]}, {"calibration_tokens": 9}),
    }
    prompted = {
        "style": ({}, {"style": "chat"}),
        "overflow": ({"max_length": 12}, {"overflow": "drop"}),
        "generate": ({"test": s[kind]}, {"generate": 2}),
        "new_tokens": ({"test": s[kind]}, {"new_tokens": 3}),
        "metrics": ({"test": s[kind]}, {"metrics": ("token_f1",)}),
    }
    own = {
        "text": {
            "layout": ({}, {"layout": "kcd"}),
            "length": ({}, {"length": 300}),
            "overflow": ({"length": 12}, {"overflow": "drop"}),
            "txt_unit": ({"train": s["txt"]}, {"txt_unit": "line"}),
            "end_documents": ({}, {"end_documents": False}),
        },
        "dictionary": {
            "layout": ({"train": s["kcd"], **both}, {"layout": "mgk"}),
            "directions": ({}, {"directions": ("ko-en",)}),
            "probe_direction": ({"test": s[kind]}, {"probe_direction": "ko-en"}),
            "distractors": ({"test": s[kind]}, {"distractors": 2}),
            **prompted,
        },
        "mcq": {
            "layout": (
                {"train": s["kor"], "target": "reasoning", "answers": "1"},
                {"layout": "mgk"},
            ),
            "target": ({}, {"target": "letter"}),
            "show_options": ({}, {"show_options": False}),
            "answers": ({"answers": "0"}, {"answers": "1"}),
            "contrast": ({}, {"contrast": 0.5}),
            **prompted,
        },
    }
    dialogue = {
        "layout": ({}, {"layout": "alpaca"}),
        **prompted,
        "style": ({}, {"style": "plain"}),
        "overflow": ({"max_length": 30}, {"overflow": "drop"}),
    }
    own |= {"chat": dialogue, "instruction": dialogue, "preference": dialogue}
    if kind == "mcq":
        shared = {k: ({"answers": "1", **a}, b) for k, (a, b) in shared.items()}
        own["mcq"] = {k: ({"answers": "1", **a}, b) for k, (a, b) in own["mcq"].items()}
    if kind == "dictionary":
        shared["normalise"] = (
            {"columns": {"definition": "text"}, "train": s["text"]},
            {"normalise": "none"},
        )
        shared["normalise"][0]["columns"] |= {"ko": "text", "en": "other"}
        shared["normalise"][0]["directions"] = ("en-ko",)
    if kind == "mcq":
        shared["normalise"] = (
            {"answers": "1", "train": s["mcq"], "base_probes": {"base": s["text"]}},
            {"normalise": "none"},
        )
    return shared | own[kind]


def seen(spec, bundle):
    """Return everything that a phase's data shows, or the error that it ends in."""
    cache._memory.clear()
    for file in cache.folder().glob("*"):
        file.unlink()
    try:
        data = load(spec, bundle)
    except MgkError as error:
        return type(error).__name__
    probes = [
        (
            p.name,
            p.digest,
            p.metric,
            len(p.items),
            [getattr(i, "new_tokens", 0) for i in p.items],
        )
        for p in data.probes
    ]
    batches = [
        [b.input_ids.tolist() for b in part]
        for part in (data.dev, data.verify, data.calibration)
    ]
    return (
        len(data.train),
        data.train.digest,
        probes,
        batches,
        len(list(cache.folder().glob("*"))),
    )


KEYS = [
    (k, a.name)
    for k, cls in KINDS.items()
    for a in attrs.fields(cls)
    if a.name != "type"
]


@pytest.mark.parametrize(("kind", "key"), KEYS)
def test_every_key_changes_something(bundle, sources, kind, key):
    """With one key changed, the data, its probes, an error, or what is on disk is another."""
    both, one = changes(kind, sources)[key]
    settings = {"type": kind, "train": sources[kind], **both}
    cls = KINDS[kind]
    assert key in one
    assert seen(cls(**settings), bundle) != seen(cls(**{**settings, **one}), bundle)

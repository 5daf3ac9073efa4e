"""mgk bench forgetting --suite korean: the shipped pipeline as the harness, its cells and its table."""

import json

import pytest
from click.testing import CliRunner

import mgk
from mgk_bench import korean, korean_table, methods
from mgk_bench.command import bench
from mgk_bench.korean import Cut, KoreanCell
from mgk_core.contract.errors import InputError

TINY = Cut(base="tiny-gemma", steps=2, items=4)
TAUGHT = {"text": 1, "dictionary": 2, "mcq": 3, "base-ko": None}


def cell(method, rows, seed=0, cpu=(10.0, 1.0, 1.0), kept=0, taught=TAUGHT):
    names = list(TAUGHT)
    parts = dict(zip(("training", "statistics", "merge"), cpu, strict=True))
    table = tuple(dict(zip(names, row, strict=True)) for row in rows)
    return KoreanCell(
        method, seed, taught, table, (), dict.fromkeys(names, 4), parts, kept, 1000
    )


NAIVE = cell(
    "naive",
    [(-4, -5, -6, -3), (-3, -5, -5, -3.5), (-3.5, -3, -5, -4), (-3.8, -3.5, -4, -4)],
)
HELD = cell(
    "held", [(-4, -5, -6, -3), (-3, -5, -5, -3), (-3.1, -3, -5, -3.2), (-3.2, -3, -4.5, -3.25)],
    cpu=(11.0, 2.0, 2.4), kept=50,
)  # fmt: skip


def test_figures_by_hand():
    """Gain over row 0 and over the row before, what of it is left, the base's drift, and costs; shares of naive's."""
    found = korean_table.figures(HELD, NAIVE)
    assert found.gain == pytest.approx({"text": 1.0, "dictionary": 2.0, "mcq": 1.5})
    assert found.gain_share == pytest.approx(
        {"text": 1.0, "dictionary": 2 / 2, "mcq": 1.5 / 2}
    )
    assert found.own == pytest.approx({"text": 1.0, "dictionary": 2.0, "mcq": 0.5})
    assert found.own_share == pytest.approx(
        {"text": 1.0, "dictionary": 1.0, "mcq": 0.5}
    )
    assert found.kept == pytest.approx({"text": 0.8, "dictionary": 1.0})
    assert found.drift == pytest.approx({"base-ko": 0.25})
    assert found.drift_share == pytest.approx({"base-ko": 0.25})
    assert found.bwt == pytest.approx(-0.1)
    assert found.plasticity == pytest.approx((1 + 2 + 1.5) / 3)
    assert (found.step, found.kept_share) == pytest.approx((1.1, 0.05))
    assert found.boundary == pytest.approx(0.4)


def test_joint_has_only_an_end():
    """One phase has taught everything: no gain of its own phase, nothing to keep, but an end and a drift."""
    joint = cell(
        "joint",
        [(-4, -5, -6, -3), (-3, -3, -4, -3.5)],
        taught={**TAUGHT, "dictionary": 1, "mcq": 1},
    )
    found = korean_table.figures(joint, NAIVE)
    assert (found.gain, found.own, found.own_share, found.kept) == ({}, {}, {}, {})
    assert found.end == pytest.approx({"text": 1.0, "dictionary": 2.0, "mcq": 2.0})
    text = korean_table.as_text([NAIVE, joint])
    assert "+1.000 / +2.000 / +2.000" in text.splitlines()[-1]
    assert [d.name for d in korean_table.dots_of([NAIVE, joint])] == ["naive"]


def test_the_table_shows_means_over_seeds():
    """Each method one line; two seeds have a standard error, one has none."""
    other = cell(
        "naive",
        [
            (-4, -5, -6, -3),
            (-2, -5, -5, -3.5),
            (-3.5, -3, -5, -4),
            (-3.8, -3.5, -4, -4),
        ],
        seed=1,
    )
    text = korean_table.as_text([NAIVE, other, HELD])
    naive, held = text.splitlines()[2:]
    assert "| 2 " in naive
    assert "+1.500 ± 0.500" in naive
    assert "±" not in held
    assert "+0.250 (0.25)" in held


def test_every_method_is_the_shipped_pipeline():
    """Phases, data and optimizer are the pipeline's; only what the method changes differs; nothing is generated."""
    shipped = mgk.pipeline(korean.PIPELINE)
    for method in methods.KOREAN:
        made = korean.pipeline_of(method, Cut())
        assert made.base == shipped.base
        assert (made.defaults["gate"], made.defaults["recover"]) == ({}, {})
        assert made.defaults["retention"] == (
            method.retention or shipped.defaults["retention"]
        )
        steps = [p.train["steps"] for p in made.phases]
        assert sum(steps) == sum(p.train["steps"] for p in shipped.phases)
        assert len(steps) == (1 if method.kind == "joint" else len(shipped.phases))
        assert all(p.data.get("generate", 0) == 0 for p in made.phases)


@pytest.mark.slow
def test_command_runs_the_pipeline_for_every_row(tmp_path, monkeypatch):
    """On the tiny base: reference rows are always there; each cell holds all probes in nats per token after each phase."""
    pytest.importorskip("transformers")
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "bench"
    arguments = [
        "forgetting",
        "--suite",
        "korean",
        "--method",
        "default",
        "--seeds",
        "1",
        "--base",
        "tiny-gemma",
    ]
    result = CliRunner().invoke(
        bench,
        [*arguments, "--steps", "2", "--items", "4", "--out", str(out)],
        catch_exceptions=False,
    )
    assert result.exit_code == 0
    assert (out / "table.md").read_text(encoding="utf-8") in result.stdout
    cells = {
        c["method"]: c
        for c in map(
            json.loads, (out / "cells.jsonl").read_text(encoding="utf-8").splitlines()
        )
    }
    assert list(cells) == ["naive", "full-ft", "joint", "default"]
    for name, found in cells.items():
        assert len(found["rows"]) == (2 if name == "joint" else 4)
        for row in found["rows"]:
            assert set(row) == {"text", "dictionary", "mcq", "base-ko", "base-en"}
            assert all(-20 < v < 0 for v in row.values())
        assert found["rows"][0] == cells["naive"]["rows"][0]
        assert found["cpu"]["training"] > 0
        assert found["model_bytes"] > 1_000_000
    assert cells["default"]["kept_bytes"] > 0
    assert cells["naive"]["kept_bytes"] == 0
    assert cells["full-ft"]["rows"][-1] != cells["naive"]["rows"][-1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "korean", "--suite", "split"], "goes alone"),
        (["--suite", "split", "--steps", "3"], "for --suite korean"),
        (["--suite", "korean", "--method", "ewc"], "no such method"),
    ],
)
def test_options_that_would_have_no_effect_are_refused(options, message):
    """Nothing is run, and the message says why."""
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(bench, ["forgetting", *options], catch_exceptions=False)

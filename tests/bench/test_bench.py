"""mgk bench forgetting: suites, cells, figures, and the command."""

import csv
import json

import pytest
import torch
from attrs import evolve
from click.testing import CliRunner

from mgk_bench import characters, digits, grid, loop, methods, table
from mgk_bench.cell import Cell
from mgk_bench.command import bench
from mgk_core.contract.errors import InputError

pytest.importorskip("sklearn")


def short(suite, epochs=1.0, tasks=3):
    """The suite with little training."""
    recipe = evolve(suite.settings["recipe"], epochs=epochs, base_epochs=epochs)
    return evolve(
        suite, tasks=suite.tasks[:tasks], settings=suite.settings | {"recipe": recipe}
    )


@pytest.mark.parametrize("name", digits.NAMES)
def test_suites_are_fixed_by_their_seed(name):
    """The same seed gives the same tasks; no test image of a task is in its training set; tasks differ."""
    one, same, other = (
        digits.suite(name, 3),
        digits.suite(name, 3),
        digits.suite(name, 4),
    )
    assert [t.train.digest for t in one.tasks] == [t.train.digest for t in same.tasks]
    assert [t.train.digest for t in one.tasks] != [t.train.digest for t in other.tasks]
    assert len({t.train.digest for t in one.tasks}) == digits.TASKS
    for task in one.tasks:
        train = {bytes(x.numpy().tobytes()) for x in task.train.data.inputs}
        assert not any(bytes(x.numpy().tobytes()) in train for x in task.test.inputs)


def test_split_asks_only_for_its_pair():
    """Logits of other classes are masked in training and in testing, also in a mixed batch."""
    suite = digits.suite("split", 0)
    bundle = suite.build(0)
    mixed = bundle.pack([suite.tasks[1].test[:5], suite.tasks[4].test[:5]])
    chosen = bundle.outputs(mixed).argmax(1)
    assert set(chosen[:5].tolist()) <= {2, 3}
    assert set(chosen[5:].tolist()) <= {8, 9}


def test_rotation_by_a_quarter_is_exact():
    """Turning by 90 degrees moves pixels and changes none."""
    images = torch.rand(3, 8, 8)
    assert torch.allclose(
        digits.rotated(images, 90), torch.rot90(images, -1, (1, 2)), atol=1e-5
    ) or torch.allclose(
        digits.rotated(images, 90), torch.rot90(images, 1, (1, 2)), atol=1e-5
    )


@pytest.mark.parametrize("method", [m.name for m in methods.METHODS])
def test_every_method_runs_and_repeats(method):
    """Each row of the table goes through two phases, and the same seed gives the same matrix."""
    suite = short(digits.suite("split", 0))
    base = loop.base_of(suite, 0)
    (wanted,) = [m for m in methods.METHODS if m.name == method]
    one, two = (loop.run_cell(suite, wanted, 0, base) for _ in range(2))
    assert one.rows == two.rows
    assert len(one.rows) == (2 if "joint" in method else 3)
    assert one.seconds > 0
    nothing = {
        "naive",
        "full-ft",
        "joint",
        "joint-full",
        "self-distillation",
        "clora",
        "intruder-repair",
        "dare",
        "wise-ft",
    }
    assert (one.kept_bytes > 0) == (method not in nothing)


@pytest.mark.slow
def test_characters_learn_and_forget():
    """Two phases of the character model: each is learnt, and what was before gets worse under plain merging."""
    suite = short(characters.suite(0), epochs=0.5)
    base = loop.base_of(suite, 0)
    cell = loop.run_cell(suite, methods.METHODS[0], 0, base)
    assert cell.rows[1][1] > cell.rows[0][1] + 0.1
    assert cell.rows[2][2] > cell.rows[1][2] + 0.1
    assert cell.rows[-1][0] < cell.rows[0][0]


def made(method, rows, taught, seed=0, seconds=2.0):
    """A cell with these scores."""
    return Cell(method, "s", seed, rows, taught, seconds, 0)


def test_lines_are_means_with_standard_errors():
    """CPU is relative to naive on the same suite; one seed has no standard error."""
    cells = [
        made(m, ((50.0, 0.0), (50.0 + seed, 60.0)), (0, 1), seed, s)
        for m, s in (("naive", 2.0), ("x", 3.0))
        for seed in (0, 2)
    ]
    naive, other = table.lines(cells)
    assert other.cpu == pytest.approx(1.5)
    assert naive.mean["bwt"] == pytest.approx(1.0)
    assert naive.stderr["bwt"] == pytest.approx(1.0)
    assert table.lines(cells[:1])[0].stderr["bwt"] is None


def test_reference_rows_are_always_there():
    """Whatever is asked for; an unknown method offers the nearest."""
    assert [m.name for m in methods.chosen(("ewc",))] == [
        "naive",
        "full-ft",
        "joint",
        "ewc",
    ]
    with pytest.raises(InputError, match="did you mean 'drift-guard'"):
        methods.chosen(("drift-gard",))


def test_command_writes_table_lines_and_picture(tmp_path, monkeypatch):
    """The table on standard output and in the folder; JSON lines with versions and configuration; a picture."""
    pytest.importorskip("matplotlib")
    real = grid.suite_of
    monkeypatch.setattr(
        grid, "suite_of", lambda name, seed: short(real(name, seed), epochs=0.2)
    )
    out = tmp_path / "bench"
    arguments = [
        "forgetting",
        "--suite",
        "split",
        "--method",
        "drift-guard",
        "--seeds",
        "1",
        "--out",
        str(out),
    ]
    result = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert (out / "table.md").read_text() in result.stdout
    lines = [
        json.loads(line) for line in (out / "cells.jsonl").read_text().splitlines()
    ]
    assert [line["method"] for line in lines] == [
        "naive",
        "full-ft",
        "joint",
        "drift-guard",
    ]
    assert {"mgk", "torch", "scikit-learn", "python"} <= set(lines[0]["versions"])
    assert len({line["configuration"] for line in lines}) == 1
    assert (out / "picture.svg").stat().st_size > 1000
    rows = list(csv.DictReader((out / "table.csv").read_text().splitlines()))
    assert [row["method"] for row in rows] == [line["method"] for line in lines]
    assert float(rows[3]["ap"]) == pytest.approx(lines[3]["figures"]["ap"])
    assert (out / "table.tex").read_text().count(r"\\") == len(lines) + 1


def test_seeds_start_anywhere_and_cells_are_printed_as_json(monkeypatch):
    """`--seed-from 7 --seeds 2` runs the seeds 7 and 8; `--json` prints cells and nothing else."""
    real = grid.suite_of
    monkeypatch.setattr(
        grid, "suite_of", lambda name, seed: short(real(name, seed), epochs=0.1)
    )
    arguments = [
        "forgetting",
        "--suite",
        "split",
        "--method",
        "naive",
        "--seeds",
        "2",
        "--workers",
        "1",
    ]
    result = CliRunner().invoke(
        bench, [*arguments, "--seed-from", "7", "--json"], catch_exceptions=False
    )
    cells = [json.loads(line) for line in result.stdout.splitlines()]
    assert {cell["seed"] for cell in cells} == {7, 8}
    assert {cell["method"] for cell in cells} == {"naive", "full-ft", "joint"}
    assert all("figures" in cell and "versions" in cell for cell in cells)

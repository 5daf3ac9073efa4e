"""Suites of texts: folders, examples, scores, results that are resumed, and the command."""

import json

import pytest
from attrs import evolve
from click.testing import CliRunner

import mgk
from mgk_bench import folder as folders
from mgk_bench import methods, results, texts
from mgk_bench.cell import Cell
from mgk_bench.command import bench
from mgk_bench.folder import Row, find_suite
from mgk_bench.text_cell import Settings
from mgk_core.contract.errors import InputError

SMALL = Settings(base="tiny-gemma", train=8, test=3, tokens=64, generate=2)


def test_a_folder_of_tasks_is_read(suite_folder):
    """Tasks in the order asked for, plain or compressed; never more rows than asked for, the same ones each time."""
    found = find_suite(str(suite_folder))
    name, tasks = found.order("back")
    assert (found.name, name, tasks) == ("small", "back", ("swap", "upper"))
    assert found.order(None)[0] == "there"
    swap, upper = found.load(tasks, 5, 100)
    assert (len(swap.train), len(swap.test), len(upper.train)) == (5, 4, 5)
    assert swap.train == found.load(tasks, 5, 100)[0].train
    (colour,) = found.load(("colour",), 3, 3)
    assert colour.test[0].labels == ("yes", "no")


def test_named_suites_and_their_orders_are_below_the_variable(
    suite_folder, monkeypatch
):
    """`superni` is $MGK_REALDATA/continual/superni, and orders.json beside it has its orders."""
    root = suite_folder.parent / "root" / "continual"
    root.mkdir(parents=True)
    suite_folder.rename(root / "superni")
    (root / "superni" / "orders.json").unlink()
    (root / "orders.json").write_text(json.dumps({"superni": {"order1": ["upper"]}}))
    monkeypatch.setenv("MGK_REALDATA", str(root.parent))
    assert find_suite("superni").orders == {"order1": ("upper",)}
    monkeypatch.delenv("MGK_REALDATA")
    with pytest.raises(InputError, match="MGK_REALDATA"):
        find_suite("superni")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"input": "a"}', "train.jsonl:2"),
        ("no json", "train.jsonl:2"),
        ('{"input": "a", "output": "b", "labels": ["c"]}', "not among its labels"),
    ],
)
def test_a_bad_row_is_named(suite_folder, line, words):
    """File and line of a row that cannot be read."""
    path = suite_folder / "upper" / "train.jsonl"
    first = path.read_text().splitlines()[0]
    path.write_text(f"{first}\n{line}\n")
    with pytest.raises(InputError, match=words):
        find_suite(str(suite_folder)).load(("upper",), 9, 9)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [("['a', 'b']", ("a", "b")), (["a", "b"], ("a", "b")), (None, ()), ("", ())],
)
def test_labels_are_a_list_or_the_text_of_one(labels, expected):
    """The 'long' benchmark's files hold Python's text of a list."""
    line = json.dumps({"input": "x", "output": "a", "labels": labels})
    assert folders._row(line, "f:1").labels == expected


def test_an_unknown_order_or_suite_is_refused(suite_folder, tmp_path):
    """The nearest order is offered; an order's missing task is named."""
    with pytest.raises(InputError, match="did you mean 'there'"):
        find_suite(str(suite_folder)).order("thera")
    (suite_folder / "orders.json").write_text('{"small": ["upper"]}')
    assert find_suite(str(suite_folder)).orders == {"small": ("upper",)}
    (suite_folder / "orders.json").write_text('{"x": ["upper", "gone"]}')
    with pytest.raises(InputError, match="gone"):
        find_suite(str(suite_folder))
    with pytest.raises(InputError, match="not a folder"):
        find_suite(str(tmp_path / "nowhere"))


def test_a_method_at_another_rate_is_a_row_of_its_own():
    """`naive@2e-4` trains like naive at that learning rate; what is not a rate is refused."""
    found = methods.chosen_texts(("drift-guard", "naive@2e-4"))
    assert [m.name for m in found] == ["naive", "joint", "drift-guard", "naive@2e-4"]
    assert found[-1].lr == 2e-4
    assert found[-1].retention == found[0].retention
    with pytest.raises(InputError, match="NAME@RATE"):
        methods.chosen_texts(("naive@fast",))


@pytest.fixture
def job(suite_folder, tmp_path):
    """A cell that was not run yet."""
    found = find_suite(str(suite_folder))
    naive = methods.chosen_texts(("naive",))[:1]
    return results.jobs_of(tmp_path / "results", found, "there", SMALL, naive, [3])[0]


CELL = Cell("naive", "small", 3, ((-3.0, -3.0), (-1.0, -2.5), (-1.5, -1.0)), (1, 2), 2.0, 0,
            items=((-1.0, -2.0), (-1.0, -1.0)), base={"base-en": (-3.0, -3.1)}, kl=0.01)  # fmt: skip


def test_a_cell_that_is_there_is_not_run_again(job, monkeypatch):
    """It is read from its file, which holds figures, versions and the digest of its settings."""
    assert results.read_cell(job) is None
    results.write_cell(job, CELL)
    assert results.read_cell(job) == CELL
    monkeypatch.setattr(results, "run_text_cell", None)
    assert results.run_jobs([job], 1, print, print) == [CELL]
    table = json.loads(job.path.read_text())
    assert table["figures"]["bwt"] == -0.5
    assert table["digest"] == results.settings_digest(job.settings_table)
    assert [p.name for p in job.path.parent.iterdir()] == ["naive-seed3.json"]


def test_cells_of_other_settings_are_not_mixed_in(job):
    """The settings that differ are named; a damaged file is named as well."""
    results.write_cell(job, CELL)
    other = evolve(job, settings=evolve(SMALL, tokens=32))
    with pytest.raises(InputError, match=r"settings\.tokens"):
        results.read_cell(other)
    job.path.write_text("{")
    with pytest.raises(InputError, match="damaged"):
        results.read_cell(job)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite", "split", "--order", "x"], "--order: only for suites of texts"),
        (["--suite", "DIR", "--items", "3"], "--items: only for --suite korean"),
        (["--suite", "DIR", "--suite", "split"], "goes alone"),
    ],
)
def test_options_without_an_effect_are_refused(suite_folder, options, message):
    """Nothing is run, and the message names the option."""
    given = [str(suite_folder) if o == "DIR" else o for o in options]
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(bench, ["forgetting", *given], catch_exceptions=False)


@pytest.mark.slow
def test_examples_are_cut_and_scored(suite_folder, monkeypatch, tmp_path):
    """Examples fit, their answers whole; the score of free text is the loss that training sees; labels are chosen."""
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "cache"))
    bundle = mgk.load_base("hf", id="tiny-gemma")
    row = Row("upper:", "apple " * 80, "APPLE")
    cut = texts.fit(bundle, row, 40)
    assert (cut.instruction, cut.output) == (row.instruction, row.output)
    assert row.input.startswith(cut.input)
    assert len(cut.input) < len(row.input)
    with pytest.raises(InputError, match="--tokens 16"):
        texts.fit(bundle, evolve(row, instruction="upper " * 40), 16)

    found = find_suite(str(suite_folder))
    upper, colour = found.load(("upper", "colour"), 8, 4)
    task = texts.encode(bundle, upper, 64)
    assert max(len(e.ids) for e in task.train.examples) <= 64
    scores = texts.item_scores(bundle, task)
    for item, score in zip(task.items, scores, strict=True):
        answer = item.options[0]
        labels = (-100,) * len(item.prompt) + answer
        batch = bundle.pack(
            [evolve(task.train.examples[0], ids=item.prompt + answer, labels=labels)]
        )
        total, count = bundle.loss(batch)
        assert -float(total / count) == pytest.approx(score, abs=1e-3)
    choices = texts.encode(bundle, colour, 64)
    assert choices.classifies
    assert set(texts.item_scores(bundle, choices)) <= {0.0, 1.0}
    assert 0 <= texts.rouge_l(bundle, task, 2) <= 100


@pytest.mark.slow
def test_the_command_runs_resumes_and_writes_every_format(
    suite_folder, tmp_path, monkeypatch
):
    """Two tasks on the tiny base: matrix, Rouge-L, cost to the base, KL; the second call runs nothing."""
    pytest.importorskip("rouge_score")
    monkeypatch.setenv("MGK_CACHE", str(tmp_path / "cache"))
    arguments = [
        "forgetting", "--suite", str(suite_folder), "--method", "drift-guard", "--seeds", "1",
        "--base", "tiny-gemma", "--train", "8", "--test", "3", "--tokens", "64", "--generate", "2",
        "--results", str(tmp_path / "results"), "--out", str(tmp_path / "out"),
    ]  # fmt: skip
    result = CliRunner().invoke(bench, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    for name in ("table.md", "table.tex", "table.csv", "cells.jsonl", "picture.svg"):
        assert (tmp_path / "out" / name).stat().st_size > 100
    cells = {
        c["method"]: c
        for c in map(
            json.loads, (tmp_path / "out" / "cells.jsonl").read_text().splitlines()
        )
    }
    assert list(cells) == ["naive", "joint", "drift-guard"]
    for name, cell in cells.items():
        assert len(cell["rows"]) == (2 if name == "joint" else 3)
        assert cell["rows"][0] == cells["naive"]["rows"][0]
        assert len(cell["generated"]) == 2
        assert {"base-ko", "base-en"} <= set(cell["base"])
        assert cell["kl"] > 0
        assert cell["memory"] > 1e8
        assert (cell["kept_bytes"] > 0) == (name == "drift-guard")
        assert cell["needs_old_data"] == (name == "joint")
    assert cells["naive"]["ledger"] != cells["drift-guard"]["ledger"]
    monkeypatch.setattr(results, "ProcessPoolExecutor", None)
    again = CliRunner().invoke(bench, [*arguments, "--json"], catch_exceptions=False)
    assert [json.loads(line)["rows"] for line in again.stdout.splitlines()] == [
        cell["rows"] for cell in cells.values()
    ]

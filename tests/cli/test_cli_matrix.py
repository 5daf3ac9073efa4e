"""The retention matrix and the paired differences as they are drawn: what stands where, and what is explained."""

import re

import pytest
from rich.cells import cell_len

from mgk_cli.console import make
from mgk_cli.matrix import matrix
from mgk_cli.retention import changes, figures
from mgk_core.contract.bundle import Score
from mgk_core.run.scores import retention_table


def score(probe, value, *, metric="loss", n=200, stderr=0.5, higher=False, per_item=()):
    """Return one score; of 200 items unless told."""
    return Score(probe, metric, value, n, stderr, higher, per_item=tuple(per_item))


def table(*rows, **probes):
    """Return retention.json's table of rows (phase, scores). probes: each one's phase."""
    return retention_table(
        [(name, {s.probe: s for s in scores}) for name, scores in rows], probes, {}
    )


def drawn(what, width=120):
    """Return the lines that renderables are drawn in, without colours."""
    console = make(width=width)
    with console.capture() as capture:
        for item in what:
            console.print(item)
    return [line.rstrip() for line in capture.get().splitlines()]


def whole(what):
    """Return what is drawn as one line."""
    return " ".join(" ".join(drawn(what)).split())


TWO = table(
    ("base", [score("a", 8.0), score("b", 9.0)]),
    ("one", [score("a", 4.0), score("b", 9.0)]),
    ("two", [score("b", 1.0)]),
    a="one",
    b="two",
)


@pytest.mark.parametrize(
    ("heat", "colour"), [(False, False), (True, False), (True, True)]
)
def test_scores_of_a_column_end_one_below_the_other(heat, colour):
    """With a shade behind them, with the mark of their phase, with neither, and where nothing was scored."""
    rows = drawn(
        matrix(
            {**TWO, "probes": TWO["probes"][:1]}, width=100, heat=heat, colour=colour
        )
    )[3:8]
    assert [row.split()[0] for row in rows] == [
        "baseline",
        "one",
        "two",
        "gain",
        "gain",
    ]
    ends = {
        cell_len(row[: row.index(end)]) + len(end)
        for row, end in zip(rows, ("0.50", "0.50", "–", "+4.000", "–"), strict=True)
    }
    assert len(ends) == 1


def test_the_legend_explains_shades_and_only_those_that_are_there():
    """Signs in a pipe, colours on a terminal, nothing where no cell is shaded or nothing became worse."""
    signs = whole(matrix(TWO, width=100, heat=True, colour=False))
    assert "+ better than the baseline; █ quarters" in signs
    assert "worse" not in signs
    assert "blue better than the baseline" in whole(
        matrix(TWO, width=100, heat=True, colour=True)
    )
    assert "than the baseline" not in whole(matrix(TWO, width=100))
    worse = table(("base", [score("a", 4.0)]), ("one", [score("a", 8.0)]), a="one")
    assert "− worse than the baseline" in whole(
        matrix(worse, width=100, heat=True, colour=False)
    )


def test_the_legend_explains_intervals_where_there_are_some():
    """Scores of fewer than a hundred items stand with one."""
    said = "[a, b] 95 % interval, for fewer than 100 items"
    few = table(("base", [score("a", 4.0, n=99)]), a="one")
    assert said in whole(matrix(few, width=100))
    assert "± standard error" not in whole(matrix(few, width=100))
    assert said not in whole(matrix(TWO, width=100))


def test_the_legends_say_against_which_row():
    """The matrix's gain is against row 0, what a phase did on the same items against the row before."""
    assert "gain in its phase: change vs the baseline" in whole(matrix(TWO, width=100))
    assert "in its phase: vs the row before" in whole(changes(compared("loss"), 120))


def compared(*metrics):
    """Return a table with items, a probe of each metric."""
    before = [score(m, 3.0, metric=m, per_item=[3.0, 3.5, 4.0]) for m in metrics]
    after = [score(m, 2.0, metric=m, per_item=[2.0, 2.5, 2.0]) for m in metrics]
    return table(("base", before), ("one", after), **dict.fromkeys(metrics, "one"))


@pytest.mark.parametrize(
    ("metrics", "unit"),
    [
        (["loss"], "standard error, in the probe's metric "),
        (["perplexity"], "in nats per token (log-likelihood), not in perplexity"),
        (
            ["loss", "perplexity"],
            "in the probe's metric; for perplexity in nats per token (log-likelihood)",
        ),
    ],
)
def test_paired_differences_have_a_unit(metrics, unit):
    """A perplexity's items are log-likelihoods: the difference is none of perplexities."""
    assert unit in whole(changes(compared(*metrics), 120))


def test_bwt_is_one_figure_per_metric():
    """Not that of the base's probe, of one not scored when taught, nor of one that the last phase teaches."""
    kinds = {
        "a": "loss",
        "b": "accuracy",
        "base_probe": "perplexity",
        "unscored": "generation",
        "late": "margin",
    }
    every = [score(name, 4.0, metric=metric) for name, metric in kinds.items()]
    scored = [s for s in every if s.probe != "unscored"]
    found = table(
        ("base", every), ("one", scored), ("two", every),
        a="one", b="one", base_probe="base", unscored="one", late="two",
    )  # fmt: skip
    said = whole(figures(found))
    assert re.findall(r"BWT \S+ (\w+)", said) == ["loss", "accuracy"]

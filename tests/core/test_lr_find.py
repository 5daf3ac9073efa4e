"""The learning-rate range test: its steps are a phase's own, and nothing is left behind."""

from __future__ import annotations

import itertools
import json

import pytest
from click.testing import CliRunner

from mgk_cli.curve import chart
from mgk_cli.main import cli
from mgk_core.config.resolve import load_tree
from mgk_core.contract.errors import InputError
from mgk_core.run.setup import prepare
from mgk_core.tools.lr_find import Curve, Point, find_lr
from mgk_sgd.step import StandardStep


def found(phase="plain_text", *, overrides=None, **options):
    """Return the curve of a phase of the reference pipeline."""
    tree = load_tree("textmodel", overrides=overrides or {})
    return find_lr(prepare(tree), phase, **{"steps": 40, **options})


def test_the_rates_rise_by_one_factor_between_the_ends():
    """From the lowest to the highest, or to where the loss diverged."""
    curve = found(low=1e-5, high=1e-3)
    rates = [p.lr for p in curve.points]
    assert not curve.ended
    assert (rates[0], rates[-1]) == (pytest.approx(1e-5), pytest.approx(1e-3))
    factors = [b / a for a, b in itertools.pairwise(rates)]
    assert factors == pytest.approx([factors[0]] * 39)


def test_each_step_is_a_step_of_the_phase_at_its_rate(make_recorded):
    """Group rates scale together; the loss is the batch's own before the update."""
    rates = make_recorded
    overrides = {"phases.plain_text.optimizer": {"type": "adamw", "lr_ratio": 4.0}}
    curve = found(overrides=overrides, low=1e-5, high=1e-3)
    assert [r[0] for r in rates] == pytest.approx([p.lr for p in curve.points])
    assert [r[1] for r in rates] == pytest.approx([4 * p.lr for p in curve.points])


@pytest.fixture
def make_recorded(monkeypatch):
    """Return the list that every step's rates by group are put into."""
    rates, call = [], StandardStep.__call__

    def recorded(self, batches, step):
        out = call(self, batches, step)
        rates.append([g["lr"] for g in self.optimizer.param_groups])
        return out

    monkeypatch.setattr(StandardStep, "__call__", recorded)
    return rates


def test_it_ends_where_the_loss_diverges_and_suggests_a_rate_that_trains():
    """At the suggestion the reference task is learned; a thousandth of it does nothing in as many steps."""
    curve = found(steps=80)
    assert "rose" in curve.ended or "finite" in curve.ended
    assert curve.suggestion < curve.minimum < curve.points[-1].lr
    fall = {}
    for rate in (curve.suggestion, curve.suggestion / 1000):
        trained = found(low=rate, high=rate * 1.0001, steps=40)
        fall[rate] = trained.points[-1].smooth / trained.points[0].smooth
    assert fall[curve.suggestion] < 0.7
    assert fall[curve.suggestion / 1000] > 0.95


def test_without_a_fall_nothing_is_suggested():
    """Rates that are far too small: the minimum is noise."""
    curve = found(low=1e-12, high=1e-11)
    assert curve.minimum is curve.steepest is curve.suggestion is None


def test_twice_the_same_and_nothing_is_left(tmp_path, monkeypatch):
    """The same points twice; no file where it was run."""
    monkeypatch.chdir(tmp_path)
    first, second = (found("mcq").points for _ in range(2))
    assert first == second
    assert list(tmp_path.iterdir()) == []


def test_smoothing_is_the_mean_of_a_constant():
    """The correction for its start makes a constant loss its own smoothed loss from the first step on."""
    smooth, mean = [], 0.0
    for i in range(5):
        mean = 0.9 * mean + 0.1 * 3.0
        smooth.append(mean / (1 - 0.9 ** (i + 1)))
    assert smooth == pytest.approx([3.0] * 5)
    first = found(low=1e-12, high=1e-11).points[0]
    assert first.smooth == pytest.approx(first.loss)


def test_a_step_that_ignores_the_rates_is_refused(monkeypatch):
    """It would draw a curve of nothing."""
    make = StandardStep.__init__

    def deaf(self, ctx, **keys):
        make(self, ctx, **keys)
        self.factor = lambda _: 1.0

    monkeypatch.setattr(StandardStep, "__init__", deaf)
    with pytest.raises(InputError, match="does not follow the rates"):
        found()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--phase", "mcp"], "did you mean 'mcq'"),
        (["--from", "1", "--to", "0.1"], "--from < --to"),
    ],
)
def test_wrong_arguments(arguments, message):
    """Exit code 2 and what was expected; before anything is loaded."""
    from mgk_cli.main import invoke

    assert invoke(["lr-find", "textmodel", *arguments]) == 2
    with pytest.raises(InputError, match=message):
        CliRunner().invoke(
            cli, ["lr-find", "textmodel", *arguments],
            standalone_mode=False, catch_exceptions=False,
        )  # fmt: skip


def test_the_command_prints_the_curve_and_json():
    """The suggestion is the same in both."""
    arguments = ["lr-find", "textmodel", "--phase", "mcq", "--steps", "60"]
    shown = CliRunner().invoke(cli, arguments, catch_exceptions=False)
    data = json.loads(
        CliRunner().invoke(cli, [*arguments, "--json"], catch_exceptions=False).stdout
    )
    assert f"phases.mcq.optimizer.lr = {data['suggestion']:.1e}" in shown.stdout
    assert data["phase"] == "mcq"
    assert data["configured"] == 3e-4
    assert len(data["points"]) <= 60
    assert shown.stdout.count("•") > 20


def test_the_chart_shows_where_the_loss_falls():
    """Left the first loss, lower to the right; the rows are as wide as they say."""
    points = [Point(10**-x, y, y) for x, y in ((4, 3.0), (3, 2.0), (2, 1.0))]
    rows = chart(Curve("p", tuple(points), 1e-3), 41)
    body = [row.partition("│")[2] for row in rows if "│" in row]
    assert {len(row) for row in body} == {41}
    places = {row.index("•"): i for i, row in enumerate(body) if "•" in row}
    assert sorted(places) == [0, 20, 40]
    assert places[0] < places[20] < places[40] == len(body) - 1

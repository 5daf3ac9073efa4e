"""Every gate, every branch, on scores made by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mgk_core.contract.bundle import Probe, Score
from mgk_core.contract.context import PhaseContext
from mgk_core.contract.errors import InputError
from mgk_core.contract.outcome import Verdict
from mgk_validation.compare import Change
from mgk_validation.gates import judge, share_kept

Phases = Callable[..., PhaseContext]


def probe(
    name: str, phase: str, *, up: bool = True, floor: float | None = None
) -> Probe:
    """Make a probe of accuracy (up) or of squared error."""
    metric = "option_accuracy" if up else "squared_error"
    return Probe(name, phase, metric, (), higher_is_better=up, floor=floor)


def score(
    name: str,
    value: float,
    *,
    items: Any = (),
    stderr: float = 0.0,
    up: bool = True,
    metric: str = "",
) -> Score:
    """Make a score."""
    metric = metric or ("option_accuracy" if up else "squared_error")
    n = max(len(items), 1)
    return Score(
        name, metric, value, n, stderr, higher_is_better=up, per_item=tuple(items)
    )


PROBES = (
    probe("english", "base"),
    probe("text", "plain_text", up=False, floor=8.0),
    probe("dict", "medical_dictionary", up=False, floor=8.0),
    probe("exam", "mcq"),
)


def row(
    english: float = 0.5,
    text: float = 50.0,
    dict_: float = 80.0,
    exam: float = 0.2,
    stderr: float = 0.0,
) -> dict[str, Score]:
    """Make a row; English and exam are accuracies, text and dictionary errors."""
    return {
        "english": score("english", english, stderr=stderr),
        "text": score("text", text, up=False, stderr=stderr),
        "dict": score("dict", dict_, up=False, stderr=stderr),
        "exam": score("exam", exam, stderr=stderr),
    }


def ask(
    phase_of: Phases,
    gate: dict[str, Any],
    before: list[dict[str, Score]],
    after: dict[str, Score],
    index: int = 1,
) -> Verdict:
    """Ask the gates of phase ``index``."""
    verdict = judge(phase_of(index, PROBES, gate=gate), before, after)
    assert verdict is not None
    return verdict


def test_no_gate_is_no_verdict(phase_of: Phases) -> None:
    """Where the phase names no gate of this plugin, it says nothing."""
    assert judge(phase_of(1, PROBES), [row()], row()) is None


class TestMaxDrop:
    """``max-drop``."""

    def test_absolute(self, phase_of: Phases) -> None:
        """A drop within the limit passes; one beyond it is refused with its figures."""
        gate = {"max-drop": {"absolute": 5.0}}
        before = [row(), row(text=16.0)]
        assert ask(phase_of, gate, before, row(text=20.9)).accept
        verdict = ask(phase_of, gate, before, row(text=21.5))
        assert not verdict.accept
        (refusal,) = verdict.refusals
        assert (refusal.gate, refusal.probe) == ("max-drop", "text")
        assert refusal.evidence["drop"] == pytest.approx(5.5)
        assert refusal.evidence["allowed"] == 5.0
        assert "16 → 21.5" in refusal.reason

    def test_relative(self, phase_of: Phases) -> None:
        """The limit is a share of the score compared with; the tighter of two limits counts."""
        before = [row(), row(text=16.0)]
        assert ask(
            phase_of, {"max-drop": {"relative": 0.5}}, before, row(text=23.9)
        ).accept
        assert not ask(
            phase_of, {"max-drop": {"relative": 0.5}}, before, row(text=24.1)
        ).accept
        assert not ask(
            phase_of,
            {"max-drop": {"relative": 0.5, "absolute": 1.0}},
            before,
            row(text=17.5),
        ).accept

    def test_standard_errors_alone(self, phase_of: Phases) -> None:
        """Without another limit, so many standard errors of the difference are allowed: √2 · 1.0 · 3."""
        gate = {"max-drop": {"stderrs": 3.0}}
        before = [row(), row(text=16.0, stderr=1.0)]
        assert ask(phase_of, gate, before, row(text=16 + 4.2, stderr=1.0)).accept
        assert not ask(phase_of, gate, before, row(text=16 + 4.3, stderr=1.0)).accept

    def test_never_tighter_than_the_noise(self, phase_of: Phases) -> None:
        """A limit within two standard errors is widened to them, and the verdict says so."""
        gate = {"max-drop": {"absolute": 0.1}}
        before = [row(), row(text=16.0, stderr=1.0)]
        verdict = ask(phase_of, gate, before, row(text=18.5, stderr=1.0))
        assert verdict.accept
        assert any(
            "text" in note and "tighter than the noise" in note
            for note in verdict.notes
        )
        assert not ask(phase_of, gate, before, row(text=19.0, stderr=1.0)).accept

    def test_noise_is_that_of_the_items_own_changes(self, phase_of: Phases) -> None:
        """Items that all worsen alike have no noise, however far they lie apart."""
        gate = {"max-drop": {"absolute": 0.5}}
        first, second = [10.0, 20.0, 30.0], [11.0, 21.0, 31.0]
        before, after = row(), row()
        before["text"] = score("text", 20.0, items=first, stderr=5.8, up=False)
        after["text"] = score("text", 21.0, items=second, stderr=5.8, up=False)
        verdict = ask(phase_of, gate, [row(), before], after)
        assert not verdict.accept
        assert not verdict.notes

    def test_against_best_and_previous(self, phase_of: Phases) -> None:
        """Slow forgetting passes against the row before and is refused against the best since it was taught."""
        before = [row(), row(text=16.0), row(text=19.0)]
        after = row(text=22.0)
        assert ask(
            phase_of,
            {"max-drop": {"absolute": 4.0, "against": "previous"}},
            before,
            after,
            2,
        ).accept
        assert not ask(
            phase_of,
            {"max-drop": {"absolute": 4.0, "against": "best"}},
            before,
            after,
            2,
        ).accept

    def test_best_counts_from_the_teaching_phase_on(self, phase_of: Phases) -> None:
        """A lucky score before a probe was taught binds nobody; the base's probes count from row 0."""
        before = [row(text=1.0), row(text=16.0), row(text=17.0)]
        assert ask(
            phase_of,
            {"max-drop": {"absolute": 4.0, "probes": ["text"]}},
            before,
            row(text=18.0),
            2,
        ).accept
        before = [row(english=0.9), row(english=0.6)]
        assert not ask(
            phase_of, {"max-drop": {"absolute": 0.1}}, before, row(english=0.6)
        ).accept

    def test_later_phases_probes_do_not_count(self, phase_of: Phases) -> None:
        """What has not been taught yet cannot be forgotten."""
        gate = {"max-drop": {"absolute": 0.01}}
        assert ask(phase_of, gate, [row(), row(exam=0.9)], row(exam=0.1)).accept

    def test_the_phases_own_probe_counts(self, phase_of: Phases) -> None:
        """A phase that worsens what it teaches is refused."""
        gate = {"max-drop": {"absolute": 1.0}}
        assert not ask(phase_of, gate, [row(), row(dict_=80.0)], row(dict_=90.0)).accept

    def test_globs_choose(self, phase_of: Phases) -> None:
        """Only the probes that match are looked at; none at all is an error that lists what there is."""
        before = [row(), row(text=16.0)]
        assert ask(
            phase_of,
            {"max-drop": {"absolute": 1.0, "probes": ["eng*"]}},
            before,
            row(text=40.0),
        ).accept
        with pytest.raises(InputError, match="no probe to check.*english, text, dict"):
            ask(
                phase_of,
                {"max-drop": {"absolute": 1.0, "probes": ["french"]}},
                before,
                row(),
            )

    @pytest.mark.parametrize("gate", ["max-drop", "keep-base", "threshold", "min-gain"])
    def test_a_score_that_is_no_number_refuses(
        self, phase_of: Phases, gate: str
    ) -> None:
        """NaN passes no gate."""
        options = {"threshold": {"limit": 0.0}, "min-gain": {"absolute": 0.0}}.get(
            gate, {}
        )
        nan = math.nan
        after = row(nan, nan, nan, nan)
        assert not ask(phase_of, {gate: options}, [row(), row()], after).accept


class TestKeepBase:
    """``keep-base``."""

    def test_share_of_row_zero(self, phase_of: Phases) -> None:
        """97 % of the base's own score must be left, whatever the row before was."""
        gate = {"keep-base": {"share": 0.97}}
        before = [row(english=0.8), row(english=0.5)]
        assert ask(phase_of, gate, before, row(english=0.777)).accept
        verdict = ask(phase_of, gate, before, row(english=0.775))
        assert [r.gate for r in verdict.refusals] == ["keep-base"]
        assert verdict.refusals[0].evidence["kept"] == pytest.approx(0.775 / 0.8)

    def test_noise_is_forgiven_and_told(self, phase_of: Phases) -> None:
        """A drop below the share but within two standard errors passes with a note."""
        before = [row(english=0.8, stderr=0.1), row()]
        verdict = ask(phase_of, {"keep-base": {}}, before, row(english=0.7, stderr=0.1))
        assert verdict.accept
        assert "noise" in verdict.notes[0]

    def test_without_a_probe_of_the_base_it_is_an_error(self, phase_of: Phases) -> None:
        """A gate that sees nothing does not accept."""
        ctx = phase_of(1, PROBES[1:], gate={"keep-base": {}})
        with pytest.raises(InputError, match="no probe to check"):
            judge(ctx, [row()], row())

    def test_share_of_losses_and_likelihoods(self) -> None:
        """Losses: before / after. Log-likelihoods: the ratio of geometric means, as for perplexities."""
        assert share_kept(
            Change(score("p", 4.0, up=False), score("p", 5.0, up=False))
        ) == pytest.approx(0.8)
        assert share_kept(Change(score("p", -1.0), score("p", -1.2))) == pytest.approx(
            math.exp(-0.2)
        )
        ppl = [
            score("p", math.exp(x), up=False, metric="perplexity") for x in (1.0, 1.2)
        ]
        assert share_kept(Change(*ppl)) == pytest.approx(math.exp(-0.2))
        assert share_kept(Change(score("p", 0.0), score("p", 0.1))) == math.inf
        assert share_kept(Change(score("p", 0.0), score("p", 0.0))) == 1.0


class TestMinGain:
    """``min-gain``."""

    @pytest.mark.parametrize(
        ("options", "enough"),
        [
            ({"absolute": 10.0}, 70.0),
            ({"relative": 0.25}, 60.0),
            ({"to_floor": 0.5}, 44.0),
            ({"absolute": 1.0, "to_floor": 0.5}, 44.0),
        ],
        ids=str,
    )
    def test_each_limit(
        self, phase_of: Phases, options: dict[str, float], enough: float
    ) -> None:
        """From 80 with a floor of 8: the least gain in units, as a share, and of the way to the floor."""
        before = [row(), row(dict_=80.0)]
        assert ask(phase_of, {"min-gain": options}, before, row(dict_=enough)).accept
        verdict = ask(phase_of, {"min-gain": options}, before, row(dict_=enough + 0.1))
        assert [r.probe for r in verdict.refusals] == ["dict"]

    def test_only_the_phases_own_probes(self, phase_of: Phases) -> None:
        """What earlier phases taught may fall as it likes, as far as this gate goes."""
        assert ask(
            phase_of,
            {"min-gain": {"absolute": 1.0}},
            [row()],
            row(text=500.0, dict_=70.0),
        ).accept

    def test_in_standard_errors(self, phase_of: Phases) -> None:
        """A gain that must stand out of the noise."""
        before = [row(dict_=80.0, stderr=3.0)]
        assert not ask(
            phase_of,
            {"min-gain": {"stderrs": 2.0}},
            before,
            row(dict_=72.0, stderr=3.0),
        ).accept
        assert ask(
            phase_of,
            {"min-gain": {"stderrs": 2.0}},
            before,
            row(dict_=71.0, stderr=3.0),
        ).accept

    def test_a_limit_within_the_noise_is_told(self, phase_of: Phases) -> None:
        """The note comes whether the gate accepts or refuses."""
        before = [row(dict_=80.0, stderr=3.0)]
        for value in (78.0, 82.0):
            verdict = ask(
                phase_of,
                {"min-gain": {"absolute": 1.0}},
                before,
                row(dict_=value, stderr=3.0),
            )
            assert verdict.accept == (value < 80)
            assert "noise" in verdict.notes[0]

    def test_a_floor_that_is_not_known_is_an_error(self, phase_of: Phases) -> None:
        """``to_floor`` needs one."""
        with pytest.raises(InputError, match="no known floor"):
            ask(
                phase_of,
                {"min-gain": {"to_floor": 0.3}},
                [row(), row(), row()],
                row(),
                2,
            )


class TestThreshold:
    """``threshold``."""

    def test_in_the_metrics_direction(self, phase_of: Phases) -> None:
        """At least for scores, at most for losses; the limit itself passes."""
        english = {"threshold": {"limit": 0.5, "probes": ["english"]}}
        assert ask(phase_of, english, [row()], row(english=0.5)).accept
        assert not ask(phase_of, english, [row()], row(english=0.49)).accept
        text = {"threshold": {"limit": 20.0, "probes": ["text"]}}
        assert ask(phase_of, text, [row()], row(text=20.0)).accept
        refused = ask(phase_of, text, [row()], row(text=20.1))
        assert "at most 20" in refused.refusals[0].reason


def test_gates_add_up(phase_of: Phases) -> None:
    """Every gate of the phase is asked, and every refusal is told."""
    gate = {
        "max-drop": {"absolute": 1.0},
        "min-gain": {"absolute": 100.0},
        "keep-base": {"share": 0.97},
    }
    verdict = ask(
        phase_of,
        gate,
        [row(english=0.8), row(english=0.8)],
        row(english=0.7, text=60.0),
    )
    assert {(r.gate, r.probe) for r in verdict.refusals} == {
        ("max-drop", "text"), ("min-gain", "dict"), ("keep-base", "english"),
    }  # fmt: skip


def test_evidence_has_the_paired_test() -> None:
    """Right-or-wrong items come with McNemar's exact p: 6 lost, 1 won of 20."""
    one = [1.0] * 13 + [0.0] * 7
    two = [0.0] * 6 + [1.0] * 8 + [0.0] * 6
    change = Change(score("p", 0.65, items=one), score("p", 0.4, items=two))
    evidence = change.evidence()
    assert evidence["test"] == "McNemar exact"
    assert evidence["p"] == pytest.approx(2 * (1 + 7) / 2**7)
    assert evidence["gain"] == pytest.approx(-0.25)


def test_perplexitys_paired_error_is_in_its_own_unit() -> None:
    """Items are nats; the difference of two perplexities around 10 is ten times as noisy."""
    nll = [2.0, 2.4, 2.5]
    more = [2.1, 2.4, 2.8]
    options = {"up": False, "metric": "perplexity"}
    change = Change(
        score("p", 10.0, items=nll, **options), score("p", 10.0, items=more, **options)
    )
    plain = Change(
        score("p", 10.0, items=nll, up=False), score("p", 10.0, items=more, up=False)
    )
    assert change.stderr == pytest.approx(10 * plain.stderr)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.floats(-3, 3))
def test_a_shift_of_all_items_has_no_error(values: list[float], shift: float) -> None:
    """The paired standard error is that of the changes, up to float64's rounding of the sums."""
    change = Change(
        score("p", 0.0, items=values),
        score("p", shift, items=[v + shift for v in values]),
    )
    assert change.stderr == pytest.approx(0.0, abs=1e-12)
    assert change.noise(2.0) == pytest.approx(0.0, abs=1e-11)


def test_an_unknown_error_gives_no_room() -> None:
    """With a single item there is no standard error, and so no allowance for it."""
    change = Change(score("p", 0.5, items=[0.5]), score("p", 0.4, items=[0.4]))
    assert math.isnan(change.stderr)
    assert change.noise(2.0) == 0.0


@pytest.mark.parametrize(
    ("gate", "accepted"),
    [
        ({"min-gain": {"absolute": 0.1}}, True),
        ({"min-gain": {"absolute": 0.5}}, False),
        ({"max-drop": {"absolute": 0.0}}, True),
        ({"max-drop": {"absolute": 0.0, "against": "best"}}, True),
    ],
)
def test_a_probe_of_the_ends_is_compared_with_the_last_row_that_has_it(
    phase_of: Phases, gate: dict[str, Any], *, accepted: bool
) -> None:
    """Probes that are too costly for every row have a score in the baseline and in the last row only."""
    middle = row()
    del middle["exam"]
    verdict = ask(phase_of, gate, [row(), middle, middle], row(exam=0.4), index=2)
    assert verdict.accept == accepted

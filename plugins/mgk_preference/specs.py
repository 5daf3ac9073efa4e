"""Configuration of what a phase minimises (table ``loss``). Keys have TRL's names."""

from __future__ import annotations

from attrs import frozen

from mgk_core.contract.bundle import (
    Bundle,
    HasLabelledAnswers,
    HasPairs,
    HasWeights,
    PhaseData,
    PredictsTokens,
)
from mgk_core.contract.errors import InputError, nearest
from mgk_core.contract.specs import LossSpec, above, at_least, between, one_of, option

DPO_LOSSES = (
    "sigmoid", "hinge", "ipo", "robust", "exo_pair", "nca_pair", "bco_pair", "sppo_hard",
    "apo_zero", "apo_down", "sigmoid_norm", "sft",
)  # fmt: skip
SMOOTHED = ("sigmoid", "robust", "exo_pair")
"""Values of ``loss_type`` that label smoothing acts on."""

CHOSEN_ONLY = (
    "preferences: the likelihood loss learns the chosen answers only; loss.type = 'dpo' learns from"
    " both"
)


def _noise() -> float:
    noise: float = option(
        0.0,
        at_least(0),
        help="NEFTune: uniform noise up to this over √(length · width) on each embedding; 5 to 15 are usual",
    )
    return noise


@frozen(kw_only=True)
class LikelihoodSpec(LossSpec):
    """The base's own loss: of a language model, the likelihood of what is learned."""

    label_smoothing: float = option(
        0.0,
        between(0, 0.5),
        help="share of the target that is spread over the whole vocabulary",
    )
    neftune_noise_alpha: float = _noise()
    prompt_weight: float = option(
        0.0, between(0, 1), help="weight of a prompt's tokens, where answers have 1"
    )
    loss_type: str = option(
        "nll",
        one_of("nll", "dft"),
        help="nll: −log p; dft: −p · log p with p as a constant weight, so that unlikely tokens pull less",
    )

    @property
    def plain(self) -> bool:
        """Whether this is the base's own loss, so that its own way to it is used."""
        changed = self.label_smoothing or self.neftune_noise_alpha or self.prompt_weight
        return not changed and self.loss_type == "nll"

    def __attrs_post_init__(self) -> None:
        if self.loss_type == "dft" and self.label_smoothing:
            raise ValueError("label_smoothing: has no meaning for loss_type 'dft'")

    def check(self, data: PhaseData, bundle: Bundle) -> tuple[str, ...]:
        """Refuse options that need a language model, and labelled answers."""
        weighted = isinstance(data.train, HasWeights)
        if weighted or not self.plain:
            require_language_model(self.type, bundle)
        if weighted and self.prompt_weight:
            raise InputError(
                "prompt_weight: these data have a weight for each token already; remove the key"
            )
        if isinstance(data.train, HasLabelledAnswers):
            raise InputError(
                "these data are answers labelled good or bad, and the likelihood would learn the good"
                " ones only; set type = 'kto', or give pairs of a chosen and a rejected answer"
            )
        return (CHOSEN_ONLY,) if isinstance(data.train, HasPairs) else ()


@frozen(kw_only=True)
class PairwiseSpec(LossSpec):
    """What losses on pairs of a chosen and a rejected answer share."""

    neftune_noise_alpha: float = _noise()

    def check(self, data: PhaseData, bundle: Bundle) -> tuple[str, ...]:
        """Refuse data that are not pairs."""
        require_language_model(self.type, bundle)
        if isinstance(data.train, HasPairs):
            return ()
        if isinstance(data.train, HasLabelledAnswers):
            raise InputError(
                f"{self.type} needs pairs of a chosen and a rejected answer, and these data are answers"
                " labelled good or bad; set type = 'kto'"
            )
        raise InputError(
            f"{self.type} needs pairs of a chosen and a rejected answer; set data.type = 'preference'"
        )


@frozen(kw_only=True)
class DpoSpec(PairwiseSpec):
    """Direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290) and its variants."""

    beta: float = option(
        0.1,
        above(0),
        help="how closely the reference is kept to; for ipo its τ",
    )
    loss_type: str | tuple[str, ...] = option(
        "sigmoid",
        help="one, or several that are added: " + ", ".join(DPO_LOSSES),
    )
    loss_weights: tuple[float, ...] = option(
        (), help="one for each loss_type; default: 1 each"
    )
    label_smoothing: float = option(
        0.0,
        between(0, 0.499),
        help="share of the pairs that are assumed to be the wrong way round: "
        + ", ".join(SMOOTHED),
    )

    @property
    def losses(self) -> dict[str, float]:
        """Each loss_type with its weight."""
        names = (self.loss_type,) if isinstance(self.loss_type, str) else self.loss_type
        weights = self.loss_weights or (1.0,) * len(names)
        return dict(zip(names, weights, strict=True))

    def __attrs_post_init__(self) -> None:
        names = (self.loss_type,) if isinstance(self.loss_type, str) else self.loss_type
        for name in names:
            if name not in DPO_LOSSES:
                raise ValueError(
                    f"loss_type: expected one of {', '.join(DPO_LOSSES)}, got {name!r}"
                    f"{nearest(name, DPO_LOSSES)}"
                )
        if not names or len(set(names)) < len(names):
            raise ValueError(f"loss_type: expected different losses, got {list(names)}")
        if len(self.loss_weights) not in {0, len(names)}:
            raise ValueError(
                f"loss_weights: expected {len(names)}, one for each loss_type, got {len(self.loss_weights)}"
            )
        if self.label_smoothing and not set(names) & set(SMOOTHED):
            raise ValueError(
                f"label_smoothing: acts on loss_type {', '.join(SMOOTHED)} only"
            )
        if "exo_pair" in names and not self.label_smoothing:
            raise ValueError(
                "label_smoothing: exo_pair needs one above 0, such as 1e-3"
            )


@frozen(kw_only=True)
class OrpoSpec(PairwiseSpec):
    """Odds ratio preference optimization (Hong et al. 2024, arXiv 2403.07691): no reference."""

    beta: float = option(
        0.1, above(0), help="weight of the odds ratio beside the likelihood (λ)"
    )


@frozen(kw_only=True)
class SimpoSpec(PairwiseSpec):
    """Simple preference optimization (Meng et al. 2024, arXiv 2405.14734): no reference."""

    beta: float = option(
        2.0, above(0), help="scale of the mean log-likelihood per token"
    )
    simpo_gamma: float = option(
        1.0, at_least(0), help="margin that the chosen answer is to win by"
    )
    label_smoothing: float = option(
        0.0,
        between(0, 0.499),
        help="share of the pairs that are assumed to be the wrong way round",
    )
    cpo_alpha: float = option(
        0.0,
        at_least(0),
        help="weight of the chosen answers' likelihood beside the preference (CPO-SimPO)",
    )


@frozen(kw_only=True)
class KtoSpec(LossSpec):
    """Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306): answers with labels."""

    beta: float = option(0.1, above(0), help="how closely the reference is kept to")
    loss_type: str = option(
        "kto",
        one_of("kto", "apo_zero_unpaired"),
        help="apo_zero_unpaired: without the estimate of the divergence",
    )
    desirable_weight: float = option(1.0, at_least(0), help="weight of good answers")
    undesirable_weight: float = option(1.0, at_least(0), help="weight of bad answers")
    neftune_noise_alpha: float = _noise()

    def check(self, data: PhaseData, bundle: Bundle) -> tuple[str, ...]:
        """Refuse data without labels; note what balances good and bad answers."""
        require_language_model(self.type, bundle)
        train = data.train
        if isinstance(train, HasPairs):
            return ("kto: each pair gives one good and one bad answer",)
        if not isinstance(train, HasLabelledAnswers):
            raise InputError(
                "kto needs answers labelled good or bad; set data.type = 'preference', with columns"
                " prompt, completion and label"
            )
        good = sum(answer.desirable for answer in train.answers)
        bad = len(train.answers) - good
        if not good or not bad:
            raise InputError(
                f"kto needs good and bad answers, and all {len(train.answers)} are"
                f" {'good' if good else 'bad'}"
            )
        return self._balance(good, bad)

    def _balance(self, good: int, bad: int) -> tuple[str, ...]:
        """Eq. 8 of the paper: the weighted ratio of good to bad answers is best in [1, 4/3]."""
        ratio = self.desirable_weight * good / (self.undesirable_weight * bad or 1e-30)
        if 1 <= ratio <= 4 / 3:
            return ()
        weight = self.undesirable_weight * bad / good
        note = (
            f"kto: {good:,} good and {bad:,} bad answers; the paper advises desirable_weight from"
            f" {weight:.3g} to {weight * 4 / 3:.3g} with undesirable_weight {self.undesirable_weight:g}"
        )
        return (note,)


BASE = "base"
"""The teacher that is the base of the phase."""


@frozen(kw_only=True)
class DistillSpec(LossSpec):
    """Distillation: the teacher's whole distribution at each learned token (arXiv 2306.13649)."""

    teacher: str = option(
        BASE,
        help="base: this phase's base, to stay near it; or a directory or hub id with the same tokenizer",
    )
    beta: float = option(
        0.0,
        between(0, 1),
        help="0: forward KL, teacher ‖ student; 1: reverse KL; between: generalised Jensen-Shannon",
    )
    temperature: float = option(
        1.0, above(0), help="divides the logits of teacher and student"
    )
    likelihood_weight: float = option(
        0.0, at_least(0), help="weight of the labels' likelihood beside the divergence"
    )
    neftune_noise_alpha: float = _noise()

    def check(self, data: PhaseData, bundle: Bundle) -> tuple[str, ...]:
        """Refuse what has nothing to teach."""
        require_language_model(self.type, bundle)
        if isinstance(data.train, HasLabelledAnswers):
            raise InputError(
                "distillation learns from texts, and these data are answers labelled good or bad"
            )
        if self.teacher == BASE and not self.likelihood_weight:
            raise InputError(
                "teacher = 'base' alone teaches nothing: the adapter begins as the base; set"
                " likelihood_weight = 1, or name another teacher"
            )
        return ()


def require_language_model(name: str, bundle: Bundle) -> None:
    """Refuse a base without token predictions.

    :raises InputError: the bundle does not have ``predictions``
    """
    if not isinstance(bundle, PredictsTokens):
        raise InputError(
            f"{name} needs a language model as base; {type(bundle).__name__} has no 'predictions'"
            " (mgk_core.contract.bundle.PredictsTokens)"
        )

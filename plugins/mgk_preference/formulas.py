"""The losses as formulas of log-likelihoods; everything is one value per pair or per answer, fp32.

Names and signs are TRL's, against which tests compare them. π: the model, r: the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from attrs import frozen
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax, logsigmoid


@frozen(eq=False)
class Answers:
    """One value for each pair: summed log-likelihoods and how many tokens they are sums of."""

    chosen: Tensor
    rejected: Tensor
    chosen_tokens: Tensor
    rejected_tokens: Tensor

    @property
    def chosen_mean(self) -> Tensor:
        """Log-likelihood per token."""
        return self.chosen / self.chosen_tokens

    @property
    def rejected_mean(self) -> Tensor:
        """Log-likelihood per token."""
        return self.rejected / self.rejected_tokens


@frozen(eq=False)
class Ratios:
    """log π(y) − log r(y) of chosen and rejected answers, with their lengths and the options of DPO."""

    answers: Answers
    reference: Answers
    beta: float
    label_smoothing: float

    @property
    def chosen(self) -> Tensor:
        """Of the chosen answers."""
        return self.answers.chosen - self.reference.chosen

    @property
    def rejected(self) -> Tensor:
        """Of the rejected answers."""
        return self.answers.rejected - self.reference.rejected

    @property
    def logits(self) -> Tensor:
        """β times the difference: what the preference model takes the logistic function of."""
        return self.beta * (self.chosen - self.rejected)

    @property
    def mean_difference(self) -> Tensor:
        """The difference per token, for losses that length must not change."""
        chosen = self.chosen / self.answers.chosen_tokens
        return chosen - self.rejected / self.answers.rejected_tokens


def smoothed(logits: Tensor, smoothing: float) -> Tensor:
    """−log σ(z), where a share of the pairs is the wrong way round (cDPO, arXiv 2305.18290 app. B)."""
    return -(1 - smoothing) * logsigmoid(logits) - smoothing * logsigmoid(-logits)


def sigmoid(r: Ratios) -> Tensor:
    """DPO (arXiv 2305.18290, eq. 7)."""
    return smoothed(r.logits, r.label_smoothing)


def sigmoid_norm(r: Ratios) -> Tensor:
    """DPO on log-likelihoods per token (arXiv 2405.14734, with a reference)."""
    return -logsigmoid(r.beta * r.mean_difference)


def hinge(r: Ratios) -> Tensor:
    """SLiC's hinge (arXiv 2305.10425)."""
    return torch.relu(1 - r.logits)


def ipo(r: Ratios) -> Tensor:
    """IPO (arXiv 2310.12036, eq. 17), per token as its authors compute it; β is their τ."""
    return (r.mean_difference - 1 / (2 * r.beta)) ** 2


def robust(r: Ratios) -> Tensor:
    """Robust DPO (arXiv 2403.00409): unbiased where a known share of the labels is wrong."""
    e = r.label_smoothing
    loss = -(1 - e) * logsigmoid(r.logits) + e * logsigmoid(-r.logits)
    return loss / (1 - 2 * e)


def exo_pair(r: Ratios) -> Tensor:
    """EXO (arXiv 2402.00856, eq. 16): KL of the model's preference from (1 − ε, ε)."""
    wins, loses = logsigmoid(r.logits), logsigmoid(-r.logits)
    target = torch.tensor([1 - r.label_smoothing, r.label_smoothing]).log()
    target = target.to(wins)
    return wins.exp() * (wins - target[0]) + loses.exp() * (loses - target[1])


def nca_pair(r: Ratios) -> Tensor:
    """NCA (arXiv 2402.05369)."""
    chosen, rejected = r.beta * r.chosen, r.beta * r.rejected
    away = logsigmoid(-chosen) + logsigmoid(-rejected)
    return -logsigmoid(chosen) - 0.5 * away


def bco_pair(r: Ratios) -> Tensor:
    """BCO on pairs (arXiv 2404.04656), without its shift."""
    return -logsigmoid(r.beta * r.chosen) - logsigmoid(-r.beta * r.rejected)


def sppo_hard(r: Ratios) -> Tensor:
    """SPPO with hard labels (arXiv 2405.00675, eq. 4.7)."""
    return (r.chosen - 0.5 / r.beta) ** 2 + (r.rejected + 0.5 / r.beta) ** 2


def apo_zero(r: Ratios) -> Tensor:
    """APO-zero (arXiv 2408.06266, eq. 7): chosen answers better than the model's own."""
    return 1 - (r.beta * r.chosen).sigmoid() + (r.beta * r.rejected).sigmoid()


def apo_down(r: Ratios) -> Tensor:
    """APO-down (arXiv 2408.06266, eq. 8): chosen answers worse than the model's own."""
    return (r.beta * r.chosen).sigmoid() + 1 - r.logits.sigmoid()


def sft(r: Ratios) -> Tensor:
    """Likelihood of the chosen answers: the mean over the micro-batch's tokens, for each pair."""
    answers = r.answers
    mean = -answers.chosen.sum() / answers.chosen_tokens.sum()
    return mean.expand(len(answers.chosen))


DPO: Mapping[str, Callable[[Ratios], Tensor]] = {
    f.__name__: f
    for f in (
        sigmoid, hinge, ipo, robust, exo_pair, nca_pair, bco_pair, sppo_hard, apo_zero, apo_down,
        sigmoid_norm, sft,
    )
}  # fmt: skip
"""``loss_type`` → formula."""


def simpo(answers: Answers, beta: float, gamma: float, smoothing: float) -> Tensor:
    """SimPO (arXiv 2405.14734, eq. 6): means per token, a margin γ, no reference."""
    margin = answers.chosen_mean - answers.rejected_mean
    return smoothed(beta * margin - gamma, smoothing)


def log_odds_ratio(answers: Answers) -> Tensor:
    """ORPO's log odds of chosen against rejected (arXiv 2403.07691, eq. 4), p per token."""
    chosen, rejected = answers.chosen_mean, answers.rejected_mean
    return chosen - rejected - (log1mexp(chosen) - log1mexp(rejected))


def log1mexp(x: Tensor) -> Tensor:
    """log(1 − exp(x)) for x < 0, accurate near 0 and far from it (Mächler 2012)."""
    x = x.clamp(max=-1e-7)  # a probability of 1 has no odds
    near = x > -0.6931472  # log ½
    # Each branch is computed on values that are safe for it: the gradient of both is taken.
    close = torch.log(-torch.expm1(torch.where(near, x, -1.0)))
    far = torch.log1p(-torch.exp(torch.where(near, -1.0, x)))
    return torch.where(near, close, far)


def kto(ratio: Tensor, desirable: Tensor, divergence: Tensor, beta: float) -> Tensor:
    """KTO (arXiv 2402.01306, eq. 7). ratio: (n,)   desirable: (n,) bool   divergence: 0-dim, ≥ 0."""
    gap = torch.where(desirable, ratio - divergence, divergence - ratio)
    return 1 - (beta * gap).sigmoid()


def divergence(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence of rows of logits (arXiv 2306.13649, eq. 1), (n,).

    beta 0: KL(teacher ‖ student); 1: KL(student ‖ teacher).   student, teacher: (n, V)
    """
    s, t = log_softmax(student, -1), log_softmax(teacher, -1)
    if beta == 0:
        return _kl(t, s)
    if beta == 1:
        return _kl(s, t)
    log_beta, log_rest = torch.tensor([beta, 1 - beta]).log().to(s)
    mixture = torch.logaddexp(s + log_rest, t + log_beta)
    return beta * _kl(t, mixture) + (1 - beta) * _kl(s, mixture)


def _kl(p: Tensor, q: Tensor) -> Tensor:
    """KL(p ‖ q) of log-probabilities, (n,)."""
    return kl_div(q, p, reduction="none", log_target=True).sum(-1)

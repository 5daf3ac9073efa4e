"""The screened head: int8 where nothing is, fp32 where the probability is."""

import pytest
import torch
from torch import nn

from mgk_hf.cpu import screen as module
from mgk_hf.cpu.screen import Screen
from mgk_hf.head import Head
from mgk_hf.precision import WideLinear

N, D, V = 60, 64, 3 * module.BLOCK + 77


@pytest.fixture
def setup():
    """A peaked head over an odd vocabulary, with a few dimensions much larger than the rest."""
    torch.manual_seed(0)
    linear = nn.Linear(D, V, bias=False).to(torch.bfloat16).requires_grad_(False)
    linear.weight.mul_(8)
    linear.__class__ = WideLinear
    hidden = torch.randn(N, D)
    hidden[:, :3] *= 10
    labels = torch.randint(0, V, (N,))
    screen = Screen.of(linear.weight.detach(), hidden.abs().amax(0))
    return linear, hidden.requires_grad_(), labels, screen


def both(linear, hidden, labels, screen):
    """Token losses and gradients of the exact and of the screened head."""
    results = []
    for head in (Head(linear), Head(linear, screen=screen)):
        nll = head.token_nll(hidden, labels)
        results.append((nll.detach(), torch.autograd.grad(nll.sum(), hidden)[0]))
    return results


def test_screened_is_within_what_it_states(setup):
    """Loss within 1e-2 a token and 1e-3 on the mean; gradient within 1 % of its length."""
    (exact, g), (screened, s) = both(*setup)
    assert (screened - exact).abs().max() < 1e-2
    assert abs((screened - exact).mean()) < 1e-3
    assert (s - g).norm() < 1e-2 * g.norm()


def test_error_goes_to_zero_with_the_thresholds(setup, monkeypatch):
    """With both thresholds at 0 every token is mended, and the result is the exact one."""
    monkeypatch.setattr(module, "EXACT", 1e-30)
    monkeypatch.setattr(module, "KEPT", 1e-30)
    (exact, g), (screened, s) = both(*setup)
    torch.testing.assert_close(screened, exact, rtol=0, atol=1e-4)
    torch.testing.assert_close(s, g, rtol=0, atol=1e-3 * float(g.abs().max()))


def test_a_flat_distribution_is_computed_whole_in_bounded_memory(setup, monkeypatch):
    """Where every token carries weight nothing can be screened, and no more than ``NOTES`` tokens are ever noted."""
    linear, hidden, labels, screen = setup
    with torch.no_grad():
        linear.weight.mul_(1e-3)
    held = []
    together = module.Found.together
    monkeypatch.setattr(module, "NOTES", N * module.BLOCK // 2)
    monkeypatch.setattr(
        module.Found,
        "together",
        staticmethod(lambda p: held.append(sum(len(f.z) for f in p)) or together(p)),
    )
    (exact, g), (screened, s) = both(linear, hidden, labels, screen)
    assert torch.equal(screened, exact)
    assert torch.equal(s, g)
    assert held == [N * module.BLOCK]  # one block, and no more were looked at


def test_what_was_noted_before_the_maximum_was_known_is_let_go(setup, monkeypatch):
    """The largest logits stand in the second block; with room for little more than these, the result is the same."""
    linear, hidden, labels, _ = setup
    with torch.no_grad():
        linear.weight[module.BLOCK : module.BLOCK + 1000].mul_(4)
        labels = linear(hidden).argmin(1)
    screen = Screen.of(linear.weight.detach(), hidden.detach().abs().amax(0))
    calls = []
    together = module.Found.together
    monkeypatch.setattr(
        module.Found,
        "together",
        staticmethod(lambda p: calls.append([len(f.z) for f in p]) or together(p)),
    )
    roomy = both(linear, hidden, labels, screen)[1]
    assert len(calls) == 1
    monkeypatch.setattr(module, "NOTES", sum(calls[0]) - 1)
    tight = both(linear, hidden, labels, screen)[1]
    for a, b in zip(tight, roomy, strict=True):
        assert torch.equal(a, b)
    assert len(calls) == 3  # once to let go, once in the end
    assert sum(calls[2]) < sum(calls[0]) / 10


def test_log_probabilities_are_screened_too(setup):
    """Scores use the screen and stay within its bound."""
    linear, hidden, labels, screen = setup
    place = torch.arange(N).flip(0)
    with torch.no_grad():
        a = Head(linear).logprob(hidden, place, labels)
        b = Head(linear, screen=screen).logprob(hidden, place, labels)
    assert (a - b).abs().max() < 1e-2


def test_the_image_follows_the_table(setup):
    """After a change of the table, a merge say, the image is made anew with the same factors."""
    linear, hidden, labels, screen = setup
    equal = screen.equal.clone()
    with torch.no_grad():
        linear.weight.mul_(1.5)
    (exact, _), (screened, _) = both(linear, hidden, labels, screen)
    assert (screened - exact).abs().max() < 2e-2
    assert screen.equal.equal(equal)


def test_same_input_same_bits(setup):
    """Two passes over the same states are bit-equal."""
    first, second = (both(*setup)[1] for _ in range(2))
    assert first[0].equal(second[0])
    assert first[1].equal(second[1])


def test_logits_are_never_screened(setup):
    """What merges are verified with is exact whatever the head is."""
    linear, hidden, _, screen = setup
    with torch.no_grad():
        assert (
            Head(linear)
            .logits(hidden)
            .equal(Head(linear, screen=screen).logits(hidden))
        )
    assert not any(p.requires_grad for p in linear.parameters())

"""The low-rank product in fast layouts computes what autograd computes."""

import pytest
import torch
from torch.nn.functional import linear

from mgk_lora import product


def inputs(dtype=torch.float64, shape=(2, 90), width=40, out=400, rank=3):
    torch.manual_seed(0)
    made = ((*shape, out), (*shape, width), (rank, width), (out, rank))
    return [torch.randn(s, dtype=dtype, requires_grad=True) for s in made]


def plain(output, x, a, b, scale):
    return output + scale * linear(linear(x, a), b)


@pytest.mark.parametrize(
    "wanted",
    [
        (True,) * 4,
        (False, False, True, True),
        (True, True, False, True),
        (True, True, True, False),
    ],
)
def test_value_and_gradients_are_autograds(wanted):
    """In float64, to its rounding, whichever of the four want a gradient."""
    output, x, a, b = inputs()
    for tensor, want in zip((output, x, a, b), wanted, strict=True):
        tensor.requires_grad_(want)
    assert product.fits(output, x, a, b)
    mine, theirs = product.add(output, x, a, b, 1.7), plain(output, x, a, b, 1.7)
    torch.testing.assert_close(mine, theirs, rtol=1e-13, atol=1e-12)
    asked = [t for t in (output, x, a, b) if t.requires_grad]
    weights = torch.randn_like(mine)
    found, expected = (
        torch.autograd.grad((y * weights).sum(), asked) for y in (mine, theirs)
    )
    for one, other in zip(found, expected, strict=True):
        assert one.is_contiguous()
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-11)


def test_an_untrained_adapter_changes_no_bit():
    """B = 0: the output comes back as it was."""
    output, x, a, b = inputs(torch.float32)
    assert torch.equal(product.add(output, x, a, torch.zeros_like(b), 2.0), output)


def test_it_is_left_to_autograd_where_it_does_not_fit():
    """Small outputs, mixed dtypes and autocast go the plain way."""
    output, x, a, b = inputs(torch.float32)
    assert not product.fits(output[:, :2], x[:, :2], a, b)
    assert not product.fits(output.bfloat16(), x, a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert not product.fits(output, x, a, b)

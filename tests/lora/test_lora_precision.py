"""Linear layers that compute the same in another precision get the fast path."""

import torch
from torch import nn

from mgk_lora.kinds import module_kind


class Rounded(nn.Linear):
    """A linear map that rounds, and says what it computes."""

    computes = nn.Linear

    def forward(self, input):
        return nn.functional.linear(
            input.to(torch.bfloat16), self.weight.to(torch.bfloat16)
        ).float()


class Foreign(nn.Linear):
    """A linear map that computes something else."""

    def forward(self, input):
        return super().forward(input).square()


def test_a_class_that_says_what_it_computes_is_adapted_at_its_output():
    """The marker chooses the low-rank path on the output, not the one over the whole weight."""
    assert module_kind(Rounded(3, 4))[0] == "linear"


def test_a_foreign_forward_is_adapted_at_its_weight():
    """Whatever it computes, a delta on the weight is right."""
    assert module_kind(Foreign(3, 4))[0] == "weight"

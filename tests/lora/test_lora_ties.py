"""Tied weights: seen before anything is attached, refused with a way out, or untied on request."""

import pytest
import torch
from torch import nn

from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.errors import InputError
from mgk_core.model.ties import check_ties
from mgk_core.testing.history import shake
from mgk_lora.targets import choose


class Config:
    tie_word_embeddings = True


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.config = Config()
        self.embed, self.body, self.head = (
            nn.Embedding(9, 6),
            nn.Linear(6, 6),
            nn.Linear(6, 9, bias=False),
        )
        self.head.weight = self.embed.weight
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    def forward(self, ids):
        return self.head(torch.tanh(self.body(self.embed(ids))))


@pytest.mark.parametrize("target", ["head", "embed"])
def test_a_tied_target_is_refused_before_anything_changes(target, put_on):
    """The message names the other end and both ways out."""
    model = Tied()
    with pytest.raises(
        InputError,
        match=rf"target {target}: its weight is tied to .*exclude.*tied = \"untie\"",
    ):
        put_on(model, targets=(target, "body"))
    assert model.head.weight is model.embed.weight
    assert list(base_state_dict(model)) == ["embed.weight", "body.weight", "body.bias"]


def test_ties_are_seen_at_plan_time():
    """check_ties answers without touching the model: mgk plan can ask it."""
    model = Tied()
    tied = check_ties(model, choose(model, ("head", "body")), untie=True)
    assert [c.name for c in tied] == ["head"]
    assert model.head.weight is model.embed.weight


def test_memory_shared_by_two_parameters_is_a_tie_too(put_on):
    """Two Parameter objects over one memory are found."""
    model = Tied()
    model.head.weight = nn.Parameter(model.embed.weight.data, requires_grad=False)
    with pytest.raises(InputError, match="tied to embed.weight"):
        put_on(model, targets=("head",))


def test_untie_gives_the_target_a_weight_of_its_own(put_on):
    """With tied = 'untie' merging into the head leaves the embedding alone, and the config says so."""
    model = Tied()
    ids = torch.arange(9)[None]
    before = model(ids)
    adapter = put_on(model, targets=("head",), tied="untie")
    assert torch.equal(model(ids), before)
    assert model.config.tie_word_embeddings is False
    shake(adapter)
    live = model(ids)
    with torch.no_grad():
        model.head.weight.copy_(adapter.merged_weight("head.weight", model.head.weight))
    adapter.detach()
    torch.testing.assert_close(model(ids), live)
    assert model.head.weight is not model.embed.weight


def test_detaching_without_a_merge_ties_again(put_on):
    """An untied weight that was not changed becomes one with its old partner: the base of before."""
    model = Tied()
    adapter = put_on(model, targets=("head",), tied="untie")
    shake(adapter)
    adapter.detach()
    assert model.head.weight is model.embed.weight
    assert model.config.tie_word_embeddings is True


def test_a_failed_attach_ties_again(put_on):
    """Where putting the parts on fails, ties and modules are as before."""
    model = Tied()
    put_on(model, "taken", targets=("body",))
    with pytest.raises(InputError, match="'taken' is attached already"):
        put_on(model, "taken", targets=("head", "body"), tied="untie")
    assert model.head.weight is model.embed.weight

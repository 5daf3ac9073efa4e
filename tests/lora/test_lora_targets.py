"""Which weights a pattern means, and what is said where it means none."""

import pytest
import torch
from torch import nn

from mgk_core.contract.errors import InputError
from mgk_core.testing.zoo import Conv1D, make
from mgk_lora.targets import candidates, choose


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.v_proj = (
            nn.Linear(6, 4, bias=False),
            nn.Linear(6, 5, bias=False),
        )
        self.norm = nn.LayerNorm(6)


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.layers = nn.ModuleList([Block(), Block()])
        self.c = Conv1D(8, 6)
        self.experts = nn.Parameter(torch.zeros(3, 4, 6))
        self.head = nn.Linear(6, 9)

    def get_output_embeddings(self):
        return self.head


def names(*patterns, exclude=()):
    return [c.name for c in choose(Model(), patterns, exclude)]


def test_all_linear_means_every_linear_map_but_the_head():
    """all-linear takes Linear and Conv1D, not embeddings, plain weights or the output head."""
    qv = [f"layers.{i}.{p}" for i in (0, 1) for p in ("q_proj", "v_proj")]
    assert names("all-linear") == [*qv, "c"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*q_proj", ["layers.0.q_proj", "layers.1.q_proj"]),
        ("q_proj", ["layers.0.q_proj", "layers.1.q_proj"]),
        ("layers.1.q_proj", ["layers.1.q_proj"]),
        ("re:layers\\.[01]\\.v_.*", ["layers.0.v_proj", "layers.1.v_proj"]),
        ("head", ["head"]),
        ("embed.weight", ["embed"]),
        ("experts", ["experts"]),
    ],
)
def test_a_pattern_is_a_glob_a_name_its_last_parts_or_a_regular_expression(
    pattern, expected
):
    """Each way of naming a weight finds exactly what it says."""
    assert names(pattern) == expected


def test_a_name_matches_whole_parts_only():
    """``proj`` is no last part of ``q_proj``."""
    with pytest.raises(InputError, match="matches no module"):
        names("proj")


def test_exclude_takes_away():
    """What exclude matches stays as it is."""
    assert names("all-linear", exclude=("layers.0.*", "c")) == [
        "layers.1.q_proj",
        "layers.1.v_proj",
    ]


@pytest.mark.parametrize(
    ("patterns", "exclude", "message"),
    [
        (("q_porj",), (), "did you mean 'q_proj'"),
        (("q_proj", "k_proj"), (), "'k_proj' matches no module"),
        (("norm",), (), r"layers.0.norm \(LayerNorm\), which has no matrix"),
        (("layers.0",), (), r"container \(Block\); did you mean 'layers.0.\*'"),
        (("re:(",), (), "not a regular expression"),
        (("q_proj",), ("q_proj",), "exclude leaves nothing"),
        ((), (), "targets is empty"),
    ],
)
def test_a_pattern_that_means_nothing_is_an_error_that_helps(
    patterns, exclude, message
):
    """The message says which pattern, and the nearest name."""
    with pytest.raises(InputError, match=message):
        choose(Model(), patterns, exclude)


def test_attention_offers_its_projections_and_hides_the_child_it_never_calls():
    """nn.MultiheadAttention reads out_proj's weight past its forward, so the adapter sits on the attention."""
    found = candidates(make("attention").model)
    assert [(c.name, type(c.module).__name__) for c in found] == [
        ("0.mha.in_proj_weight", "MultiheadAttention"),
        ("0.mha.out_proj", "MultiheadAttention"),
    ]


def test_separate_key_and_value_widths_have_projections_of_their_own():
    """With kdim and vdim torch keeps three weights instead of one."""
    found = candidates(
        nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, kdim=6, vdim=5)})
    )
    assert [c.attribute for c in found] == [
        "q_proj_weight",
        "k_proj_weight",
        "v_proj_weight",
        "out_proj.weight",
    ]


def test_a_module_used_twice_counts_once():
    """A shared module gets one adapter, which acts wherever the module is used."""
    shared = nn.Linear(4, 4)
    model = nn.ModuleDict({"first": shared, "second": shared})
    assert [c.name for c in candidates(model)] == ["first"]

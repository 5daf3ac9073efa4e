"""What a target pattern means, and what is said where it means nothing."""

import contextlib
import fnmatch
import re
import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mgk_core.contract.adapter import base_state_dict, may_adapt, state_of
from mgk_core.contract.errors import InputError
from mgk_core.model.targets import choose_linear, matches, no_match, output_head
from mgk_core.testing.reference import attach_dense

PARTS = st.lists(st.text("ab_0", min_size=1, max_size=3), min_size=1, max_size=4)
NAMES = PARTS.map(".".join)
GLOBS = st.text("ab.*?[]!-", min_size=1, max_size=6).filter(
    lambda g: any(sign in g for sign in "*?[")
)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q_proj, self.norm = nn.Linear(6, 6), nn.LayerNorm(6)
        self.attention = nn.MultiheadAttention(6, 2)


class Model(nn.Module):
    """Two blocks, an embedding and a head; with ``tied``, the head shares the embedding's weight."""

    def __init__(self, *, tied=False):
        super().__init__()
        self.embed = nn.Embedding(9, 6)
        self.layers = nn.ModuleList([Block(), Block()])
        self.down_proj, self.head = nn.Linear(6, 6), nn.Linear(6, 9, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def get_output_embeddings(self):
        return self.head


ALL = ["layers.0.q_proj", "layers.1.q_proj", "down_proj", "head"]


def means(pattern, name):
    return matches(pattern, name, linear=False)


@given(PARTS, st.data())
def test_a_name_and_its_last_parts_mean_it(parts, data):
    """Every run of whole parts up to the end does."""
    start = data.draw(st.integers(0, len(parts) - 1))
    assert means(".".join(parts[start:]), ".".join(parts))


@given(NAMES, NAMES)
def test_a_plain_pattern_means_names_by_whole_parts_only(pattern, name):
    """It means a name exactly where its parts are the name's last ones: ``proj`` is none of ``q_proj``."""
    wanted = pattern.split(".")
    assert means(pattern, name) == (name.split(".")[-len(wanted) :] == wanted)


@given(GLOBS, NAMES)
def test_a_glob_means_what_its_regular_expression_does(glob, name):
    """`re:` and the translated glob agree on every name."""
    assert means(glob, name) == means(f"re:{fnmatch.translate(glob)}", name)


@given(NAMES, NAMES)
def test_a_regular_expression_has_to_match_the_whole_name(pattern, name):
    """An escaped name means that name alone, not one that it is a part of."""
    assert means(f"re:{re.escape(pattern)}", name) == (pattern == name)


@given(st.booleans(), NAMES)
def test_all_linear_asks_for_the_kind_and_not_for_the_name(linear, name):
    """Whoever has the candidates says which of them are linear maps."""
    assert matches("all-linear", name, linear=linear) is linear


@given(st.text(), NAMES)
def test_any_pattern_is_answered_or_refused(pattern, name):
    """No pattern that a user may write ends in another error than `InputError`."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", FutureWarning
        )  # re's, of a set that a later Python may read otherwise
        for written in (pattern, f"re:{pattern}"):
            with contextlib.suppress(InputError):
                assert means(written, name) in (True, False)


@pytest.mark.parametrize(
    "expression", ["(", "[", "a{99999999999999999999}", "(" * 5000 + ")" * 5000]
)
def test_an_expression_that_is_none_is_refused(expression):
    """Also where re has another error for it than its own."""
    with pytest.raises(
        InputError, match=r"target pattern 're:.*not a regular expression"
    ):
        means(f"re:{expression}", "layers.0")


@given(st.lists(st.sampled_from(ALL), min_size=1), st.lists(st.sampled_from(ALL)))
def test_what_is_chosen_is_what_targets_mean_without_what_exclude_means(
    patterns, exclude
):
    """In the model's order, whatever the order of the patterns; nothing left is an error."""
    wanted = [n for n in ALL if n in patterns and n not in exclude]
    model = Model()
    if not wanted:
        with pytest.raises(
            InputError, match="no target is left: exclude leaves nothing"
        ):
            choose_linear(model, patterns, exclude)
        return
    chosen = choose_linear(model, patterns, exclude)
    assert list(chosen) == wanted
    assert all(module is model.get_submodule(name) for name, module in chosen.items())


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("all-linear", ALL[:3]),
        ("*", ALL),
        ("q_proj", ALL[:2]),
        ("0.q_proj", ALL[:1]),
        ("*.1.*", ALL[1:2]),
        (r"re:layers\.\d\.q_.*|down_proj", ALL[:3]),
        ("head", ["head"]),
    ],
)
def test_each_way_of_naming_finds_called_linear_modules(pattern, expected):
    """All but the head by ``all-linear``; never the output projection that torch's attention does not call."""
    assert list(choose_linear(Model(), [pattern])) == expected


def test_names_are_the_bases_whatever_sits_on_it():
    """An adapter that is attached, or a wrapper around the model, changes no name and adds no candidate."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    attach_dense(model)
    wrapped = nn.ModuleDict({"_orig_mod": model})
    assert list(choose_linear(wrapped, ["*"])) == ["0", "1"]
    assert {f"{n}.weight" for n in choose_linear(wrapped, ["*"])} <= set(
        base_state_dict(wrapped)
    )


def test_a_model_that_is_one_linear_module_has_the_empty_name():
    """`attach` on a bare layer works, and its name is in no message."""
    assert list(choose_linear(nn.Linear(3, 4), ["all-linear"])) == [""]
    with pytest.raises(InputError, match=r"'q_proj' matches no linear module$"):
        choose_linear(nn.Linear(3, 4), ["q_proj"])


def test_a_tied_weight_is_refused_and_both_names_are_told():
    """Only where it is chosen: ``all-linear`` leaves a tied head alone."""
    model = Model(tied=True)
    assert list(choose_linear(model, ["all-linear"])) == ALL[:3]
    with pytest.raises(
        InputError,
        match=r"target head: its weight is tied \(embed.weight, head.weight\)",
    ):
        choose_linear(model, ["*"])


@pytest.mark.parametrize(
    ("patterns", "exclude", "message"),
    [
        (("q_porj",), (), "'q_porj' matches no linear module; did you mean 'q_proj'"),
        (
            ("*", "xyz"),
            (),
            "'xyz' matches no linear module; known: .*head.*q_proj",
        ),
        (("*",), ("heda",), "'heda' matches no linear module; did you mean 'head'"),
        (("out_proj",), (), "'out_proj' matches no linear module"),
        ((), (), "no target is left: adapter.targets is empty"),
    ],
)
def test_a_pattern_that_means_nothing_is_an_error_that_helps(
    patterns, exclude, message
):
    """It names the pattern and the nearest name, or all that there are."""
    with pytest.raises(InputError, match=message):
        choose_linear(Model(), patterns, exclude)


def test_all_linear_without_a_linear_module_is_answered():
    """A model of convolutions, say."""
    with pytest.raises(InputError, match="'all-linear' matches nothing"):
        choose_linear(nn.Sequential(nn.Conv1d(2, 3, 1)), ["all-linear"])
    assert "matches no module; did you mean 'a.up'" in str(
        no_match("a.upp", ["a.up", "b.down"])
    )


def test_a_head_is_asked_for_and_may_be_none():
    """As transformers' models say it; others have no such method, or answer None."""
    model = Model()
    assert output_head(model) is model.head
    assert output_head(nn.Linear(2, 2)) is None
    model.get_output_embeddings = lambda: None
    assert output_head(model) is None


def test_what_a_base_keeps_frozen_is_not_chosen():
    """Whatever ``targets`` says; ``exclude`` may name it, and a target that means nothing else is refused."""
    model = Model()
    state_of(model).adaptable[:] = ["layers.1", "head"]
    assert list(choose_linear(model, ["*"])) == ["layers.1.q_proj", "head"]
    assert list(choose_linear(model, ["all-linear"], ["layers.0.*"])) == [
        "layers.1.q_proj"
    ]
    with pytest.raises(
        InputError, match=r"'layers\.0\.\*' matches only .* base\.towers"
    ):
        choose_linear(model, ["q_proj", "layers.0.*"])


@given(NAMES, NAMES)
def test_only_what_is_inside_a_named_module_may_be_adapted(module, name):
    """By whole parts: ``vision`` does not contain ``vision_tower``; without names all of a model may be."""
    model = nn.Module()
    assert may_adapt(model, name)
    state_of(model).adaptable[:] = [module]
    parts = module.split(".")
    assert may_adapt(model, name) == (name.split(".")[: len(parts)] == parts)


def test_a_pattern_far_from_all_names_gets_the_short_ones():
    """Of hundreds of layers' modules the error lists the few last parts."""
    known = [f"layers.{n}.{part}" for n in range(40) for part in ("q_proj", "k_proj")]
    assert str(no_match("zzzz", known)).endswith("known: k_proj, q_proj")
    assert str(no_match("q_prj", known)).endswith("did you mean 'q_proj'?")

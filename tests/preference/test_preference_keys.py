"""Every key of every loss acts: another value gives another loss on the same batch."""

import attrs
import pytest
import torch
from preference_rows import ANSWERS, PAIRS, AnswerRows, PairRows, Rows

from mgk_core.host.hooks import installed_hooks
from mgk_preference import specs

TEXTS = [pair.chosen for pair in PAIRS]
OTHER = {
    "likelihood": {
        "label_smoothing": 0.2, "neftune_noise_alpha": 8.0, "prompt_weight": 0.5, "loss_type": "dft",
    },
    "dpo": {
        "beta": 0.7, "loss_type": "hinge", "loss_weights": [0.5], "label_smoothing": 0.2,
        "neftune_noise_alpha": 8.0,
    },
    "orpo": {"beta": 0.7, "neftune_noise_alpha": 8.0},
    "simpo": {
        "beta": 0.7, "simpo_gamma": 0.3, "label_smoothing": 0.2, "cpo_alpha": 0.5, "neftune_noise_alpha": 8.0,
    },
    "kto": {
        "beta": 0.7, "loss_type": "apo_zero_unpaired", "desirable_weight": 2.0,
        "undesirable_weight": 2.0, "neftune_noise_alpha": 8.0,
    },
    "distill": {
        "beta": 0.7, "temperature": 2.0, "likelihood_weight": 0.5, "neftune_noise_alpha": 8.0,
    },
}  # fmt: skip
ELSEWHERE = {("distill", "teacher")}  # test_another_directory_teaches
CLASSES = {
    "likelihood": specs.LikelihoodSpec, "dpo": specs.DpoSpec, "orpo": specs.OrpoSpec,
    "simpo": specs.SimpoSpec, "kto": specs.KtoSpec, "distill": specs.DistillSpec,
}  # fmt: skip
CASES = [(name, key) for name, values in OTHER.items() for key in values]


def test_every_key_has_a_case():
    """A new key cannot come in without one."""
    keys = {
        (name, field.name)
        for name, cls in CLASSES.items()
        for field in attrs.fields(cls)
        if field.name != "type"
    }
    assert keys - ELSEWHERE == set(CASES)
    registered = installed_hooks().plugins.registry
    own = [c.type for c in registered if c.slot == "loss" and c.plugin == "preference"]
    assert set(own) == set(CLASSES)


@pytest.mark.parametrize(("name", "key"), CASES)
def test_a_key_acts(bundle, objective, name, key):
    """The same model, batch and random state, one key changed."""
    rows = {
        "kto": AnswerRows(bundle, [a.answer for a in ANSWERS]),
        "likelihood": Rows(bundle, TEXTS),
        "distill": Rows(bundle, TEXTS),
    }.get(name, PairRows(bundle, TEXTS))
    shared = {"likelihood_weight": 1.0} if name == "distill" else {}
    found = []
    for changed in ({}, {key: OTHER[name][key]}):
        ctx = objective(rows, type=name, **shared | changed)
        ctx.model.train()
        torch.manual_seed(1)
        total, count = ctx.loss(ctx.batch(range(4)))
        ctx.model.eval()
        found.append(float((total / count).detach()))
    assert found[1] != found[0]  # bit-equal where a key does nothing

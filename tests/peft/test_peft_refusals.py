"""What the bridge refuses, and says; and mgk without PEFT."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import mgk
from mgk_core.contract.errors import ConfigError, InputError
from mgk_core.testing.adapters import check_adapter

pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings(
    "ignore::UserWarning", "ignore::FutureWarning", "ignore::RuntimeWarning"
)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("PROMPT_TUNING", "cannot be merged: it changes the model's inputs"),
        ("prefix_tuning", "cannot be merged: it changes the model's inputs"),
        ("P_TUNING", "cannot be merged"),
        ("XLORA", "depends on the input"),
        ("ADALORA", "PEFT's own training loop"),
        ("LILY", "cannot be merged into up"),
        ("BOTF", "did you mean 'BOFT'"),
    ],
)
def test_what_cannot_merge_is_refused(kind, message, mlp, put_on):
    """By name where PEFT's mapping tells, by trying where only its layer can; the model stays as it was."""
    model = mlp()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    modules = dict(model.named_modules())
    with pytest.raises(InputError, match=message):
        put_on(model, kind)
    assert dict(model.named_modules()) == modules
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not hasattr(model, "peft_config")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lora_alhpa": 3}, "LoraConfig has no such field; did you mean 'lora_alpha'"),
        ({"target_modules": ["up"]}, "use the adapter's key targets"),
        ({"modules_to_save": ["out"]}, "the base is frozen"),
        ({"bias": "all"}, "expected 'none', got 'all'"),
        ({"init_lora_weights": "nonsense"}, "LoraConfig|Unknown initialization"),
        ({"r": 0}, "positive integer"),
        ({"init_lora_weights": "pissa", "r": 3}, "changes the base's own weight"),
    ],
)
def test_bad_options_are_named(options, message, mlp, put_on):
    """A misspelt field, one that mgk decides, a bad value, one that would change the base: nothing is changed."""
    model = mlp()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    with pytest.raises(InputError, match=message):
        put_on(model, "LORA", options=options)
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert not any(p.requires_grad for p in model.parameters())


def test_options_are_checked_when_the_configuration_is_read(tmp_path):
    """A wrong option in a file is an error with its line, before anything runs."""
    from mgk_core.run.runner import run_pipeline

    path = tmp_path / "mine.toml"
    path.write_text(
        '[phases.mcq.adapter]\ntype = "peft:OFT"\noptions = { oft_blok_size = 4 }\n',
        encoding="utf-8",
    )
    with pytest.raises(
        ConfigError,
        match=r"mine\.toml:\d+: phases\.mcq\.adapter: options\.oft_blok_size",
    ):
        run_pipeline("textmodel", out=tmp_path / "run", config=path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"targets": ("upp",)}, "matches no module; did you mean 'up'"),
        ({"targets": ("re:(",)}, "not a regular expression"),
        ({"targets": ("up",), "exclude": ("*",)}, "no target is left"),
    ],
)
def test_bad_targets_are_named(keys, message, mlp, put_on):
    """A pattern without a match, a broken expression, nothing left."""
    with pytest.raises(InputError, match=message):
        put_on(mlp(), "LORA", **keys)


def test_tied_weights_and_the_head_are_refused(put_on):
    """A delta on a tied weight would reach both of its modules."""
    model = nn.ModuleDict(
        {"embed": nn.Embedding(9, 6), "up": nn.Linear(6, 9, bias=False)}
    )
    model["up"].weight = model["embed"].weight
    with pytest.raises(
        InputError, match=r"target up: its weight is tied to embed\.weight"
    ):
        put_on(model, "LORA", targets=("up",))


def test_a_second_one_has_to_wait(mlp, put_on):
    """PEFT's layers do not stack in mgk; after detach the next one may come."""
    model = mlp()
    adapter = put_on(model, "OFT")
    with pytest.raises(InputError, match="merge or detach it first"):
        put_on(model, "IA3", name="second")
    mgk.detach(model, adapter)
    put_on(model, "IA3", name="second")


def test_names_mean_exactly_the_chosen_modules(put_on):
    """A pattern for one module does not reach another whose name ends alike, as it would in PEFT."""
    model = nn.ModuleDict(
        {"q": nn.Linear(4, 3), "deep": nn.ModuleDict({"q": nn.Linear(4, 3)})}
    )
    assert set(put_on(model, "LORA", targets=("re:q",)).targets()) == {"q.weight"}


def test_what_peft_merges_wrongly_is_refused(put_on):
    """PEFT pads a convolution's delta with zeros where the base pads otherwise: found by trying, at attach."""
    conv = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"))
    with pytest.raises(InputError, match="merged differs from live"):
        put_on(conv, "LORA", targets=("*",))
    put_on(nn.Sequential(nn.Conv2d(4, 6, 3, padding=1)), "LORA", targets=("*",))


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LORA", {"r": 3, "lora_alpha": 5}),
        ("OFT", {"r": 1, "oft_block_size": 0}),
        ("IA3", {}),
        ("GLORA", {"r": 2}),
    ],
)
def test_the_kit_finds_no_fault(kind, options):
    """Every law for adapters holds on linear models."""
    found = check_adapter(
        lambda model, name: mgk.attach(
            model, f"peft:{kind}", name=name, targets=["*"], options=options
        ),
        kinds=["linear"],
    )
    assert not [r for r in found if r.ok is False]
    assert sum(r.ok is True for r in found) >= 12


def test_without_peft_the_plugin_loads_and_says_what_to_install():
    """In a process that has no PEFT: mgk's other types work, this one names the extra."""
    code = """
import importlib.util, sys
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name == "peft" else real(name, *a)
sys.modules["peft"] = None
import torch, mgk
from mgk_core.contract.errors import EnvironmentFault
model = torch.nn.Sequential(torch.nn.Linear(3, 2))
mgk.detach(model, mgk.attach(model, "lora", rank=1))
try:
    mgk.attach(model, "peft:OFT")
except EnvironmentFault as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "pip install 'mgk[peft]'" in done.stdout

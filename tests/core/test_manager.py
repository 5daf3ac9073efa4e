"""Plugins: found, checked, named when they are broken, and never hiding each other."""

import types

import pytest
from torch import nn

from mgk_core.contract import hookspecs
from mgk_core.contract.errors import ConfigError, InputError, PluginError
from mgk_core.contract.hookspecs import hookimpl
from mgk_core.contract.outcome import Proposal
from mgk_core.contract.peers import peers
from mgk_core.host.hooks import Hooks, installed_hooks
from mgk_core.host.manager import load_plugins


def plugin(**functions):
    module = types.ModuleType("demo")
    for name, value in functions.items():
        setattr(module, name, value)
    return module


def info(plugins, name):
    return next(i for i in plugins.infos if i.name == name)


def test_the_built_in_parts_come_through_the_same_door():
    """Every shipped plugin is found by its entry point and loads."""
    plugins = load_plugins()
    names = {i.name for i in plugins.infos}
    assert {"lora", "merge", "sgd", "textmodel", "validation"} <= names
    assert plugins.broken == []


def test_a_misspelt_hook_is_an_error_that_offers_the_right_one():
    """A function that looks like a hook and is none breaks the plugin, by name."""
    plugins = load_plugins(extra=[("demo", plugin(mgk_merg=lambda model: None))])
    assert "did you mean 'mgk_merge'" in info(plugins, "demo").error


def test_a_hook_with_a_wrong_argument_is_an_error():
    """pluggy's own check of arguments is told as the plugin's fault, and the others stay."""

    @hookimpl
    def mgk_gate(ctx, nonsense):
        return None

    plugins = load_plugins(extra=[("demo", plugin(mgk_gate=mgk_gate))])
    assert "nonsense" in info(plugins, "demo").error
    assert info(plugins, "lora").error is None


def test_an_api_version_that_does_not_fit_is_refused():
    """A plugin for another hook API is named with both versions."""
    plugins = load_plugins(extra=[("demo", plugin(MGK_API_VERSION=99))])
    assert "hook API 99" in info(plugins, "demo").error
    (warning,) = plugins.warnings()
    assert "'demo'" in warning
    assert "hook API 99" in warning
    assert "--without-plugin demo" in warning


def test_a_plugin_can_be_left_out():
    """--without-plugin leaves one out; an unknown name offers the nearest."""
    plugins = load_plugins(without=["lora"])
    assert info(plugins, "lora").left_out
    assert not plugins.manager.has_plugin("lora")
    with pytest.raises(InputError, match="did you mean 'lora'"):
        load_plugins(without=["lorra"])


def test_what_a_plugin_raises_leaves_with_its_name_on_it():
    """pluggy does not say who raised; the facade does, with hook and distribution."""

    @hookimpl
    def mgk_phase_enter(ctx):
        raise ZeroDivisionError("deep inside")

    hooks = Hooks(
        load_plugins(extra=[("demo", plugin(mgk_phase_enter=mgk_phase_enter))])
    )
    with pytest.raises(
        PluginError,
        match=r"plugin 'demo'.*mgk_phase_enter: ZeroDivisionError: deep inside",
    ) as caught:
        hooks.phase_enter(None)
    assert caught.value.plugin == "demo"
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_a_plugin_reaches_no_plugin_that_its_run_leaves_out():
    """What a plugin asks of other plugins inside a hook is asked of those that take part."""

    @hookimpl
    def mgk_phase_enter(ctx):
        spec = peers().spec("merge", {"type": "exact"})
        peers().merge(nn.Linear(2, 2), None, Proposal(), spec)

    demo = ("demo", plugin(mgk_phase_enter=mgk_phase_enter))
    with pytest.raises(ConfigError, match="'exact'"):
        Hooks(load_plugins(without=["merge"], extra=[demo])).phase_enter(None)
    with pytest.raises(
        PluginError, match="mgk_merge"
    ):  # with the plugin the rule is asked, and has nothing to merge
        Hooks(load_plugins(extra=[demo])).phase_enter(None)


def test_peers_are_those_of_the_hook_that_is_being_called():
    """A hook inside a hook gives way to the outer one again; outside of any hook there are none."""
    seen = []
    ctx = types.SimpleNamespace(
        specs=lambda cls: (), phase=types.SimpleNamespace(merge=None)
    )

    @hookimpl
    def looks(ctx):
        seen.append(peers())

    @hookimpl
    def asks_another(ctx):
        inner.phase_enter(ctx)
        seen.append(peers())
        raise ZeroDivisionError

    inner = Hooks(load_plugins(extra=[("demo", plugin(mgk_phase_enter=looks))]))
    outer = Hooks(load_plugins(extra=[("demo", plugin(mgk_phase_enter=asks_another))]))
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        outer.phase_enter(ctx)
    assert seen == [inner, outer]
    with pytest.raises(RuntimeError, match="outside of a hook"):
        peers()


def test_outside_of_a_run_all_installed_plugins_take_part():
    """`mgk.attach` and `mgk.merge` use every installed plugin, loaded once."""
    assert installed_hooks() is installed_hooks()
    assert not any(i.left_out for i in installed_hooks().plugins.infos)


def test_a_question_that_nobody_answers_is_an_error():
    """A metric that nobody registered is an error that offers the nearest; so is a type."""
    hooks = Hooks(load_plugins())
    with pytest.raises(
        InputError, match=r"unknown metric 'perplexty'; did you mean 'perplexity'"
    ):
        hooks.evaluate(None, types.SimpleNamespace(metric="perplexty"))


def test_tracing_prints_each_call(monkeypatch, capsys):
    """MGK_TRACE_HOOKS=1 tells each hook call on standard error."""
    monkeypatch.setenv("MGK_TRACE_HOOKS", "1")
    hooks = Hooks(load_plugins())
    hooks.phase_enter(
        types.SimpleNamespace(
            specs=lambda cls: (), phase=types.SimpleNamespace(merge=None)
        )
    )
    assert "hook mgk_phase_enter: calls: retention" in capsys.readouterr().err


def test_every_hook_says_when_it_is_called_and_since_when():
    """A hook's docstring has a sentence, its arguments and its version; at most four arguments."""
    for name in hookspecs.spec_names():
        function = getattr(hookspecs, name)
        code = function.__code__
        assert code.co_argcount <= 4, name
        assert ".. versionadded::" in function.__doc__, name
        for argument in code.co_varnames[: code.co_argcount]:
            assert f":param {argument}:" in function.__doc__, (name, argument)

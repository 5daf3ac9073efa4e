"""Plugins as they are found: names taken twice, hooks without a decorator, broken ones, and the order of calls."""

import importlib
import sys
import types

import pytest

from mgk_core.config.resolve import load_tree
from mgk_core.contract.errors import ConfigError, PluginError
from mgk_core.contract.hookspecs import hookimpl
from mgk_core.host.hooks import Hooks
from mgk_core.host.manager import load_plugins
from mgk_core.run.setup import prepare

CTX = types.SimpleNamespace(
    specs=lambda cls: (), phase=types.SimpleNamespace(merge=None)
)


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a distribution whose one module is a plugin."""
    made = []

    def do(distribution, name, source, *, always=False):
        module = f"found_{distribution}"
        folder = tmp_path / distribution
        info = folder / f"{distribution}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n"
        )
        points = f"[mgk.plugins]\n{name} = {module}\n"
        if always:
            points += f"[mgk.always]\n{name} = {module}\n"
        (info / "entry_points.txt").write_text(points)
        (folder / f"{module}.py").write_text(source)
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()
        made.append(module)

    yield do
    for module in made:
        sys.modules.pop(module, None)


def warnings():
    """Return the warnings about installed plugins."""
    return list(load_plugins().warnings())


def test_a_name_that_is_taken_twice_leaves_mgks_own_plugin_whole(install):
    """The other one is refused, and both distributions are named."""
    install("evil", "lora", "")
    plugins = load_plugins()
    own, evil = sorted(
        (i for i in plugins.infos if i.name == "lora"),
        key=lambda i: i.distribution == "evil",
    )
    assert own.error is None
    assert plugins.registry.find("adapter", "lora").plugin == "lora"
    assert "also that of a plugin of mgk" in evil.error
    assert plugins.describe("lora").startswith("'lora' (mgk ")
    (warning,) = plugins.warnings()
    assert "evil 1.0" in warning
    assert "uninstall one" in warning


def test_two_others_of_one_name_are_both_refused(install):
    """Neither is preferred: each is named in the other's error."""
    install("one", "mine", "")
    install("two", "mine", "")
    errors = {i.distribution: i.error for i in load_plugins().infos if i.name == "mine"}
    assert "two 1.0" in errors["one"]
    assert "one 1.0" in errors["two"]


def test_a_hook_without_its_decorator_is_noted(install):
    """It is never called, which nobody would see."""
    install("forgetful", "forgetful", "def mgk_gate(ctx, before, after): return None\n")
    (warning,) = warnings()
    assert "'forgetful' (forgetful 1.0)" in warning
    assert "mgk_gate has no @hookimpl" in warning


def test_a_broken_plugin_does_not_stop_a_run_that_does_not_use_it(install):
    """It is named with its reason; a type that nobody registered names it too."""
    install("half", "half", "import nothing_of_that_name\n")
    prepared = prepare(load_tree("textmodel"))
    (warning,) = prepared.hooks.plugins.warnings()
    assert "'half' (half 1.0)" in warning
    assert "nothing_of_that_name" in warning
    assert "--without-plugin half" in warning
    with pytest.raises(
        ConfigError, match=r"unknown adapter type 'half'.*failed to load.*half 1\.0"
    ):
        prepare(load_tree("textmodel", overrides=["defaults.adapter.type=half"]))


def test_a_broken_plugin_that_acts_in_every_run_stops_every_run(install):
    """Its package declares so in the group ``mgk.always``; leaving it out is a decision."""
    install("half", "half", "import nothing_of_that_name\n", always=True)
    with pytest.raises(
        PluginError, match=r"half 1\.0.*acts in every run.*--without-plugin half"
    ):
        prepare(load_tree("textmodel"))
    assert prepare(load_tree("textmodel"), ["half"]).resolved.config.name == "textmodel"


def plugin(seen, name, **options):
    """Return a plugin that notes when its ``mgk_phase_enter`` is called."""
    module = types.ModuleType(name)
    if options.get("wrapper"):

        def mgk_phase_enter(ctx):
            seen.append(name)
            return (yield)

    else:

        def mgk_phase_enter(ctx):
            seen.append(name)

    module.mgk_phase_enter = hookimpl(**options)(mgk_phase_enter)
    return name, module


def test_the_order_that_is_stated_is_the_order_of_the_calls(monkeypatch, capsys):
    """Of `call_order`, of the trace and of the calls: wrappers, tryfirst, Z to A, trylast."""
    monkeypatch.setenv("MGK_TRACE_HOOKS", "1")
    seen = []
    extra = [
        plugin(seen, "a"),
        plugin(seen, "b", tryfirst=True),
        plugin(seen, "c"),
        plugin(seen, "d", trylast=True),
        plugin(seen, "e", wrapper=True),
    ]
    plugins = load_plugins(without=["retention", "hf"], extra=extra)
    Hooks(plugins).phase_enter(CTX)
    assert seen == ["e", "b", "c", "a", "d"]
    assert plugins.call_order("mgk_phase_enter") == seen
    assert (
        f"hook mgk_phase_enter: calls: {', '.join(seen)}\n" in capsys.readouterr().err
    )


def test_installed_plugins_are_called_from_z_to_a(install):
    """The last name of the alphabet first, as `mgk plugins` lists them."""
    hook = "from mgk import hookimpl\n@hookimpl\ndef mgk_phase_enter(ctx): pass\n"
    install("aa", "aa", hook)
    install("zz", "zz", hook)
    called = load_plugins().call_order("mgk_phase_enter")
    assert called == sorted(called, reverse=True)
    assert (called[0], called[-1]) == ("zz", "aa")

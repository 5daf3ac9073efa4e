"""A plugin that raises, in whatever hook: a clean stop that names both, and a run that goes on without it."""

from __future__ import annotations

import inspect

import pytest

from mgk_core.contract import hookspecs

NEVER_BEGAN = (
    "mgk_register_specs",
    "mgk_build_model",
    "mgk_load_data",
    "mgk_load_probes",
    "mgk_attach_adapter",
    "mgk_make_optimizer",
)
BEFORE_THE_OWNER = ("mgk_load_probes",)
"""Hooks whose owner has nothing to do on the reference network: the raising wrapper comes before it."""
RECOVERING = {
    "defaults__gate": "{}",
    "phases__mcq__gate__min-gain": "{to_floor = 1.0}",
    "phases__mcq__recover__keep-apart": "true",
}
NEEDED = {
    "mgk_recover": RECOVERING,
    "mgk_load_probes": {"probes__texts__type": '"text"'},
}
"""Settings without which a hook is not called."""


def raising(hook, error="RuntimeError('planted')"):
    """Return a plugin that raises in one hook; around the owner's, where that alone is called."""
    arguments = ", ".join(inspect.signature(getattr(hookspecs, hook)).parameters)
    wrapper = hookspecs.slot_of(hook) is not None
    after = wrapper and hook not in BEFORE_THE_OWNER
    return f"""
from mgk_core.contract.hookspecs import hookimpl

@hookimpl(wrapper={wrapper})
def {hook}({arguments}):
    {"yield" if after else ""}
    raise {error}
    {"yield" if wrapper else ""}
"""


@pytest.mark.parametrize("hook", hookspecs.spec_names())
def test_a_plugin_that_raises_is_named(
    server, whole, same_end, places, plugin, counted, hook
):
    """Plugin, distribution, hook and reason are told; the run is resumable once the plugin is gone."""
    run, path = next(places), plugin(raising(hook))
    count = counted("plugins that raise, named", 1)
    settings = NEEDED.get(hook, {})
    answer = server.run(run, path=[path], settings=settings)
    assert answer["code"] == 3, answer
    assert answer["error"] == "PluginError"
    assert "'zz-faulty'" in answer["message"]
    assert "planted" in answer["message"]
    if hook != "mgk_register_specs":  # told as a plugin that is broken
        assert (
            f"'zz-faulty' (zz-faulty 1.2) raised in {hook}: RuntimeError: planted"
            in answer["message"]
        )
    if not run.exists():
        assert hook in NEVER_BEGAN
        count.right += 1
        return
    answer = server.resume(run, accept=["plugin.zz-faulty"])
    assert answer["code"] == 0, answer["message"]
    if not settings:
        same_end(run, whole[0])
    count.right += 1


@pytest.mark.parametrize("error", ["SystemExit(0)", "KeyError('x')", "StopIteration()"])
def test_whatever_it_raises(server, places, plugin, error):
    """A plugin can neither end the run as if it had succeeded, nor confuse it."""
    answer = server.run(next(places), path=[plugin(raising("mgk_phase_enter", error))])
    assert answer["code"] == 3
    assert "raised in mgk_phase_enter" in answer["message"]


RETURNED = {
    "mgk_loss_terms": ('{"bad": bad}', "loss term 'bad'"),
    "mgk_observers": ("[Observer()]", "observer Observer"),
}
LATER = """
from mgk_core.contract.hookspecs import hookimpl

def bad(step):
    raise RuntimeError("planted")

class Observer:
    def on_event(self, event):
        raise RuntimeError("planted")

@hookimpl
def {hook}(ctx):
    return {value}
"""


@pytest.mark.parametrize("hook", RETURNED)
def test_what_a_hook_returned_raises_later(server, places, plugin, hook):
    """A loss term or an observer that raises in the loop is traced back to its plugin and hook."""
    run = next(places)
    value, what = RETURNED[hook]
    answer = server.run(run, path=[plugin(LATER.format(hook=hook, value=value))])
    assert answer["code"] == 3, answer
    message = f"'zz-faulty' (zz-faulty 1.2) raised in {what}: RuntimeError: planted"
    assert message in answer["message"]
    assert server.resume(run, accept=["plugin.zz-faulty"])["code"] == 0


def test_a_plugin_that_cannot_be_imported_is_named(server, places, plugin):
    """Broken at import, and declared to act in every run: named, and how to run without it."""
    run = next(places)
    answer = server.run(run, path=[plugin("import nothing_of_that_name\n")])
    assert answer["code"] == 3
    failed = "plugin 'zz-faulty' (zz-faulty 1.2) failed to load: ModuleNotFoundError"
    assert failed in answer["message"]
    assert "--without-plugin zz-faulty" in answer["message"]
    assert not run.exists()

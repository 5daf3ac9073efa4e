"""Plugins, pipelines and phases of others that are broken, greedy or hostile."""

from __future__ import annotations

import importlib
import itertools
import sys

import pytest

_names = (f"zz_bad_{i}" for i in itertools.count())
IMPORT = "from mgk_core.contract.hookspecs import hookimpl\nfrom mgk_core.contract.specs import Spec\nfrom mgk_core.contract.pipeline import Phase, Pipeline\n"
CLAIM = """
from attrs import frozen

@frozen(kw_only=True)
class Mine(Spec):
    pass

@hookimpl
def mgk_register_specs(registry):
    registry.add({what})
"""

STEP = """
class Step:
    def __call__(self, micro_batches, step): return 3
    def state_dict(self): return {}
    def load_state_dict(self, state): pass

"""

# source, what is said
PLUGINS = {
    "cannot be imported": ("import nothing_of_that_name", "failed to load: ModuleNotFoundError", "--without-plugin zz-bad"),
    "is no python": ("def (:", "failed to load: SyntaxError"),
    "exits at import": ("import sys\nsys.exit(0)", "failed to load: SystemExit"),
    "raises at import": ("raise RuntimeError('a\\x1b[31m\\u202eb')", "failed to load: RuntimeError"),
    "recurses at import": ("def f(): f()\nf()", "failed to load: RecursionError"),
    "is written for another version": ("MGK_API_VERSION = 99", "hook API 99", "install a release of the plugin that fits"),
    "misspells a hook": (IMPORT + "@hookimpl\ndef mgk_gaet(ctx): pass", "'mgk_gaet'", "did you mean 'mgk_gate'"),
    "has other arguments": (IMPORT + "@hookimpl\ndef mgk_gate(context): pass", "context"),
    "claims a type of another": (
        IMPORT + CLAIM.format(what='"adapter", "lora", Mine'), "claimed by the plugins", "'lora' and 'zz-bad'", "plugins.prefer",
    ),
    "registers what is no spec": (IMPORT + CLAIM.format(what='"adapter", "mine", int'), "is not a subclass of Spec"),
    "registers in no slot": (IMPORT + CLAIM.format(what='"adaptor", "mine", Mine'), "adaptor"),
    "raises when it registers": (IMPORT + CLAIM.format(what="1 / 0"), "failed to load: ZeroDivisionError"),
    "answers with something else": (
        IMPORT + "@hookimpl(wrapper=True)\ndef mgk_make_optimizer(adapter, spec):\n    yield\n    return 'adam'",
        "zz-bad", "mgk_make_optimizer returned a str; expected an Optimizer",
    ),
    "gives a step that is none": (
        IMPORT + STEP + "@hookimpl(wrapper=True)\ndef mgk_make_step(ctx):\n    yield\n    return Step()",
        "zz-bad", "the step returned int; expected StepOut",
    ),
    "gives a loss term that is no tensor": (
        IMPORT + "@hookimpl\ndef mgk_loss_terms(ctx): return {'x': lambda step: 'much'}", "zz-bad", "loss term 'x' returned str",
    ),
    "gives a verdict that is none": (
        IMPORT + "@hookimpl\ndef mgk_gate(ctx, before, after): return 'no'", "zz-bad", "mgk_gate returned a str; expected a Verdict",
    ),
}  # fmt: skip
OTHERS = {
    "a pipeline that cannot be imported": ("mgk.pipelines", "import nothing_of_that_name", "zz-bad", "cannot be loaded"),
    "a pipeline that is none": ("mgk.pipelines", "THING = 3", "expected a Pipeline, got int"),
    "a pipeline that is missing": ("mgk.pipelines", "OTHER = 3", "cannot be loaded"),
    "a pipeline with a name that leads out": (
        "mgk.pipelines", IMPORT + "THING = Pipeline('../x', {})", "expected 1 to 64 letters",
    ),
    "a pipeline with phases of one name": (
        "mgk.pipelines", IMPORT + "THING = Pipeline('x', {}, (Phase('a'), Phase('a')))", "phase names used twice: a",
    ),
    "a pipeline of nothing": ("mgk.pipelines", IMPORT + "THING = Pipeline('x', {})", "base", "missing"),
    "a pipeline with values of no kind": (
        "mgk.pipelines", IMPORT + "THING = Pipeline('x', {'type': object()}, (Phase('a'),))", "base.type",
    ),
}  # fmt: skip


@pytest.fixture
def install(tmp_path_factory, monkeypatch):
    """Install a module as an entry point named zz-bad, as a distribution of its own; a plugin acts in every run."""
    made = []

    def do(group, source, attribute=""):
        module, folder = next(_names), tmp_path_factory.mktemp("site")
        made.append(module)
        info = folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(
            "Metadata-Version: 2.1\nName: zz-bad\nVersion: 1.0\n"
        )
        points = f"[{group}]\nzz-bad = {module}{attribute}\n"
        if group == "mgk.plugins":
            points += f"[mgk.always]\nzz-bad = {module}\n"
        (info / "entry_points.txt").write_text(points)
        (folder / f"{module}.py").write_text(source + "\n", encoding="utf-8")
        monkeypatch.syspath_prepend(folder)
        importlib.invalidate_caches()

    yield do
    for module in made:
        sys.modules.pop(module, None)


@pytest.mark.parametrize("name", PLUGINS)
def test_plugin(answered, install, name):
    """Each is answered with the plugin's name, and how to go on."""
    source, *words = PLUGINS[name]
    install("mgk.plugins", source)
    fast = ["--set", "run.threads=1", "--set", "defaults.gate.min-gain=false"]
    answered(["run", "textmodel", "--out", "out", *fast], *words, kept=("out",))


@pytest.mark.parametrize("name", OTHERS)
def test_pipeline(answered, install, name):
    """Each is answered with whose it is and what is wrong with it."""
    group, source, *words = OTHERS[name]
    install(group, source, ":THING")
    answered(["run", "zz-bad", "--out", "out"], *words)

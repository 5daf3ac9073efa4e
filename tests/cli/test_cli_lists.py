"""Commands without a run: pipelines, plugins, config, plan, doctor."""

import sys
import types

import pytest

from mgk_cli.listing import other_orders
from mgk_core.config.render import as_table
from mgk_core.config.resolve import load_tree, resolve
from mgk_core.contract.hookspecs import hookimpl
from mgk_core.host.manager import load_plugins


def test_pipelines_lists_what_is_installed(mgk):
    """Name, origin, title."""
    ran = mgk("pipelines")
    assert ran.code == 0
    line = next(line for line in ran.out.splitlines() if line.startswith("textmodel"))
    assert "Reference network" in line
    rows = {r["name"]: r for r in mgk("pipelines", "--json").rows}
    assert rows["textmodel"]["phases"] == ["plain_text", "medical_dictionary", "mcq"]


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """Install a distribution whose plugin and pipeline cannot be imported."""
    (tmp_path / "half_a_plugin.py").write_text("raise ImportError('no such thing')\n")
    info = tmp_path / "mgk_half-0.3.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: mgk-half\nVersion: 0.3\n"
    )
    (info / "entry_points.txt").write_text(
        "[mgk.plugins]\nhalf = half_a_plugin\n[mgk.pipelines]\nhalf = half_a_plugin:PIPELINE\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    sys.modules.pop("half_a_plugin", None)


def test_plugins_lists_distribution_types_and_hooks(mgk):
    """Each plugin with where it is from, in the order in which hooks ask them."""
    ran = mgk("plugins")
    assert ran.code == 0
    assert "lora  mgk 0.1.0  mgk_lora.plugin  ok" in ran.out
    rows = mgk("plugins", "--json").rows
    lora = next(r for r in rows if r["name"] == "lora")
    assert "attach_adapter" in lora["hooks"]
    assert "lora" in lora["types"]["adapter"]


def test_the_order_of_plugins_is_that_of_the_calls(mgk):
    """The first of the list is the first that an *all* hook asks."""
    hook = load_plugins().manager.hook.mgk_evaluate
    asked = [i.plugin_name for i in reversed(hook.get_hookimpls())]
    assert len(asked) > 1
    listed = [
        r["name"] for r in mgk("plugins", "--json").rows if "evaluate" in r["hooks"]
    ]
    assert listed == asked


@pytest.mark.usefixtures("broken")
def test_a_broken_plugin_is_named_and_hides_no_other(mgk):
    """``mgk plugins`` and ``mgk pipelines`` name it with its reason, and exit 0."""
    ran = mgk("plugins")
    assert ran.code == 0
    assert "mgk-half 0.3" in ran.out
    assert "ImportError: no such thing" in ran.out
    assert "mgk_lora.plugin  ok" in ran.out
    assert "1 plugin failed to load" in ran.out
    listed = mgk("pipelines")
    assert listed.code == 0
    assert "failed to load:" in listed.out
    assert "textmodel" in listed.out


@pytest.mark.usefixtures("broken")
def test_a_broken_plugin_stops_only_runs_that_use_it(mgk, tmp_path):
    """A run that needs nothing of it goes on with a warning; its type is an error that names it."""
    ran = mgk("plan", "textmodel")
    assert ran.code == 0
    used = mgk(
        "run",
        "textmodel",
        "--out",
        tmp_path / "run",
        "--set",
        "defaults.adapter.type=half",
    )
    assert used.code == 2
    assert "unknown adapter type 'half'" in used.err
    assert "mgk-half 0.3" in used.err
    assert "ImportError: no such thing" in used.err


@pytest.mark.usefixtures("broken")
def test_the_doctor_names_a_broken_plugin(mgk):
    """An error with its mend; exit code 3."""
    ran = mgk("doctor")
    assert ran.code == 3
    assert "--without-plugin half" in ran.out


def test_what_config_prints_is_a_configuration(mgk, tmp_path):
    """Every value with its source; read back by --config it resolves to the same."""
    ran = mgk("config", "textmodel", "--set", "run.seed=3", "--device", "cpu")
    assert ran.code == 0
    assert "seed = 3 # --set" in ran.out
    assert 'device = "cpu" # --device' in ran.out
    assert "lr = 0.0003 # pipeline textmodel" in ran.out
    assert "init_std = 0.1 # default" in ran.out
    file = tmp_path / "again.toml"
    file.write_text(ran.out)
    registry = load_plugins().registry
    again = resolve(load_tree(file=file), registry).config
    first = resolve(
        load_tree("textmodel", None, ["run.seed=3", "run.device=cpu"]), registry
    ).config
    assert as_table(again) == as_table(first)


def test_config_needs_something_to_resolve(mgk):
    """Neither pipeline nor file: says where to look."""
    ran = mgk("config")
    assert ran.code == 2
    assert "mgk pipelines" in ran.err


def test_plan_says_what_would_be_done_and_does_nothing(mgk, tmp_path, monkeypatch):
    """Steps, parameters, memory, disk, plugins, conflicts; no file appears."""
    monkeypatch.chdir(tmp_path)
    ran = mgk("plan", "textmodel", "--set", "run.threads=1")
    assert ran.code == 0
    row = next(line for line in ran.out.splitlines() if line.startswith("3 mcq"))
    assert row.split()[2:] == ["400", "16", "125", "lora", "2", "3,584", "12.38", "%"]
    assert "adapter lora (lora)" in ran.out
    assert "nothing was trained" in ran.out
    assert "base UNMEASURED" in ran.out
    assert list(tmp_path.iterdir()) == []


def test_plan_finds_every_phase_that_cannot_begin(mgk):
    """Two phases with targets that match nothing: both are named, exit code 2."""
    ran = mgk(
        "plan", "textmodel", "--set", "phases.mcq.adapter.targets=['nope']",
        "--set", "phases.plain_text.adapter.targets=['nix']",
    )  # fmt: skip
    assert ran.code == 2
    assert "phases.plain_text" in ran.err
    assert "phases.mcq" in ran.err
    assert ran.err.rstrip().endswith("2 errors; nothing was run")


def test_the_doctor_gives_this_machine_a_line_each(mgk):
    """Python, torch, device, smoke test, libraries, plugins, disk, memory: each with its status."""
    ran = mgk("doctor")
    assert ran.code in (0, 3)  # a busy machine may be short of memory
    names = {
        line.split()[1]
        for line in ran.out.splitlines()
        if line.split()[0] in ("ok", "warning", "error")
    }
    assert {
        "Python",
        "torch",
        "device",
        "smoke",
        "libraries",
        "plugins",
        "pipelines",
        "disk",
        "memory",
    } <= names


def test_the_doctor_says_what_a_missing_device_means(mgk):
    """An asked-for device that is not there is an error with what auto would take."""
    ran = mgk("doctor", "--device", "mps", "--json")
    assert ran.code == 3
    wrong = next(r for r in ran.rows if r["name"] == "device")
    assert wrong["status"] == "error"
    assert "'auto' would take" in wrong["text"]


def test_an_order_that_differs_from_the_list_is_printed():
    """A hook with ``tryfirst`` is called before those of plugins that are listed before it."""
    eager, late = types.ModuleType("eager"), types.ModuleType("late")
    eager.mgk_phase_enter = hookimpl(tryfirst=True)(lambda ctx: None)
    late.mgk_phase_enter = hookimpl(lambda ctx: None)
    # Trackers send the report, so they are called after it.
    own = "recorded is called in this order: report, trackers"
    assert list(other_orders(load_plugins())) == [own]
    (line,) = {
        *other_orders(load_plugins(extra=[("eager", eager), ("late", late)]))
    } - {own}
    assert line.startswith("phase_enter is called in this order: eager, late, ")

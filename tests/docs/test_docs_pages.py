"""The documentation is true: its code runs, its generated part is up to date, its links lead somewhere."""

import fnmatch
import importlib.util
import re
import sys
import tomllib
from pathlib import Path

import pytest

from mgk_core.run.runner import run_pipeline

ROOT = Path(__file__).parents[2]


def load(name):
    spec = importlib.util.spec_from_file_location(
        f"docs_{name}", ROOT / "docs" / f"{name}.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


blocks = load("blocks")
PAGES = [pytest.param(p, id=str(p.relative_to(ROOT))) for p in blocks.pages()]
FAST = [
    p
    for p in PAGES
    if any(b.action == "run" and not b.slow for b in blocks.blocks(p.values[0]))
]
SLOW = [p for p in PAGES if any(b.slow for b in blocks.blocks(p.values[0]))]


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    return blocks.environment_for(tmp_path_factory.mktemp("docs"))


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_code_is_run_or_says_why_not(page):
    """A bash, python or toml block without a mark is an error; so is a mark that means nothing."""
    for block in blocks.blocks(page):
        if block.language in blocks.MARKED:
            assert block.action in ("run", "file", "not"), (
                f"{block}: mark this block: run, file NAME, or not run: REASON"
            )
        if block.action == "not":
            assert len(block.mark) > len("not run: ") + 8, (
                f"{block}: say why it is not run"
            )


@pytest.mark.parametrize("page", FAST)
def test_the_code_of_a_page_runs(page, tmp_path, environment):
    """Each block does what its page says, in order, in one directory."""
    assert blocks.run_page(page, tmp_path, environment, slow=False) > 0


@pytest.mark.slow
@pytest.mark.parametrize("page", SLOW)
def test_the_code_of_a_page_runs_slow_blocks_too(page, tmp_path, environment):
    """The blocks that take their time do what their page says."""
    assert blocks.run_page(page, tmp_path, environment, slow=True) > 0


@pytest.mark.parametrize("name", list(load("generate").PAGES))
def test_a_generated_page_is_up_to_date(name):
    """Help texts, docstrings and the pages that show them never drift apart."""
    generate = load("generate")
    found = (generate.REFERENCE / name).read_text(encoding="utf-8")
    assert found == generate.render(name), "run: python docs/generate.py"


def test_charts_show_the_figures_of_the_benchmarks():
    """Each chart is what docs/charts.py draws from the tables of docs/benchmarks.md."""
    charts = load("charts")
    for name, draw in charts.CHARTS.items():
        assert (charts.PICTURES / name).read_text("utf-8") == draw(), (
            "run: python docs/charts.py"
        )


def test_architecture_names_each_module_of_the_core_once():
    """Someone who has read the page can tell where a file is: no module is missing, none is invented."""
    text = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    listed = []
    for section in text.partition("## Every module of the core")[2].split("### ")[1:]:
        room = section.split("\n", 1)[0].strip()
        listed += [
            f"{room}/{name}"
            for name in re.findall(r"^\| `(\S+\.py)`", section, re.MULTILINE)
        ]
    core = ROOT / "mgk_core"
    files = [p.relative_to(core).as_posix() for p in core.glob("*/**/*.py")]
    assert sorted(listed) == sorted(f for f in files if not f.endswith("__init__.py"))


def test_the_drawing_has_the_rooms_in_the_order_of_the_layers():
    """The architecture's picture and page order the core's rooms as the import contract does."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (rooms,) = (c["layers"] for c in contracts if c["name"] == "the core's rooms")
    layers = [name.strip() for layer in rooms for name in layer.split("|")]
    drawn = re.findall(r">(\w+)</text>", load("charts").architecture())
    assert [name for name in drawn if name in layers] == layers
    generated = list(load("generate").ROOMS)
    assert sorted(generated[1:3]) == sorted(layers[-3:-1])
    assert [generated[0], *generated[3:]] == [layers[-1], *layers[-4::-1]]


def keys_by_slot():
    """Return slot or table → its keys, from the generated reference of the configuration."""
    text = (ROOT / "docs/reference/configuration.md").read_text(encoding="utf-8")
    found = {}
    for section in text.split("\n### ")[1:]:
        slot = re.match(r"\w+", section)[0]
        found.setdefault(slot, set()).update(
            re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        )
    return found


def test_the_keys_beside_other_tools_exist():
    """Each key in mgk's column of the page for newcomers is one of the configuration."""
    page = (ROOT / "docs/how-to/coming-from.md").read_text(encoding="utf-8")
    table = page.partition("| setting | mgk |")[2].partition("\n\n")[0]
    keys, checked = keys_by_slot(), 0
    for row in table.splitlines()[2:]:
        slot = None
        for name in re.findall(r"`((?:\w+)?\.\w+)", row.split(" | ")[1]):
            slot, key = name.split(".")[0] or slot, name.split(".")[1]
            assert key in keys[slot], f"{name}: no such key"
            checked += 1
    assert checked > 20


def test_decisions_are_numbered_once_and_listed():
    """Each record has a number of its own and a line in the index."""
    names = sorted(p.name for p in (ROOT / "docs/decisions").glob("0*.md"))
    assert [n[:4] for n in names] == [f"{i:04}" for i in range(1, len(names) + 1)]
    index = (ROOT / "docs/decisions/index.md").read_text(encoding="utf-8")
    assert re.findall(r"\]\((0\S+\.md)\)", index) == names


def anchors(page):
    found = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in found}


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_somewhere(page):
    """Relative links name files and headings that exist."""
    text = re.sub(
        r"^```.*?^```$",
        "",
        page.read_text(encoding="utf-8"),
        flags=re.MULTILINE | re.DOTALL,
    )
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in target:
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page}: {target} leads nowhere"
        if anchor:
            assert anchor in anchors(path), f"{page}: {target}: no such heading"


def test_every_file_of_a_run_is_on_its_page(tmp_path):
    """A run with everything that writes files writes none that the run directory's page does not name."""
    settings = {
        f"phases.{p}.train.steps": 2
        for p in ("plain_text", "medical_dictionary", "mcq")
    }
    settings |= {
        "defaults.data.items": 8,
        "run.threads": 1,
        "defaults.gate.min-gain": False,
    }
    settings |= {
        "defaults.retention": {"drift-guard": {}, "covariance-merge": {}},
        "defaults.train.checkpoint_steps": 1,
    }
    run = run_pipeline("textmodel", out=tmp_path / "run", overrides=settings).directory
    page = (ROOT / "docs/reference/run-directory.md").read_text(encoding="utf-8")
    named = [
        n.replace("N-NAME", "*")
        for n in re.findall(r"^\| `([^`]+)`", page, re.MULTILINE)
    ]
    for path in run.rglob("*"):
        name = path.relative_to(run).as_posix()
        known = any(
            fnmatch.fnmatch(name, n)
            or (n.endswith("/") and fnmatch.fnmatch(name, f"{n}*"))
            for n in named
        )
        assert path.is_dir() or known, (
            f"docs/reference/run-directory.md does not name {name}"
        )


def test_every_page_is_in_the_navigation():
    """No page can be reached only by its address."""
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (ROOT / "docs").rglob("*.md"):
        name = str(page.relative_to(ROOT / "docs"))
        assert name in nav or name.startswith("decisions/"), (
            f"mkdocs.yml: {name} is missing from nav"
        )

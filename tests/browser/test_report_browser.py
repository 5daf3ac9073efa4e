"""The report in a real browser: it draws, answers, fits paper and both themes, and asks no network."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from attrs import evolve

from mgk_report import page
from mgk_report.record import read

playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
pytest.importorskip("vl_convert")

CHROMIUM = (
    shutil.which("chromium")
    or shutil.which("chromium-browser")
    or shutil.which("google-chrome")
)
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None, reason="no Chromium: make browser installs it where it may"
    ),
]


@pytest.fixture(scope="module")
def browser():
    """Start the installed Chromium once."""
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield found
        found.close()


class Shown:
    """A page with what it asked for and complained of."""

    def __init__(self, browser, address: str, **options) -> None:
        self.page = browser.new_page(viewport={"width": 1180, "height": 900}, **options)
        self.requests: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda r: self.requests.append(r.url))
        self.page.on("pageerror", lambda e: self.complaints.append(str(e)))
        self.page.on(
            "console",
            lambda m: (
                self.complaints.append(m.text)
                if m.type in ("error", "warning")
                else None
            ),
        )
        self.page.goto(address)

    def draw_all(self) -> None:
        """Scroll to each chart that is not folded away, and wait for its picture."""
        charts = self.page.locator(".chart:visible")
        for index in range(charts.count()):
            charts.nth(index).scroll_into_view_if_needed()
            charts.nth(index).locator("svg").wait_for(timeout=20_000)


@pytest.fixture(scope="module")
def address(finished_run):
    """Return the report of a finished run, as a file's address."""
    return (finished_run / page.NAME).as_uri()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_chart_is_drawn_and_nothing_is_asked_for(browser, address, scheme):
    """No request leaves the file, nothing is complained of, and each visible chart has marks."""
    shown = Shown(browser, address, color_scheme=scheme)
    shown.draw_all()
    assert shown.requests == [address]
    assert shown.complaints == []
    assert shown.page.locator(".chart svg").count() >= 18
    ground = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(255, 255, 255)") == (scheme == "light")


def test_the_switch_shows_shares_and_scores(browser, address):
    """The button turns every cell into the share of its gain, and back; the keyboard does it too."""
    shown = Shown(browser, address)
    button = shown.page.get_by_role("button", name="share of each gain")
    button.focus()
    shown.page.keyboard.press("Enter")
    cells = shown.page.locator(".matrix tbody tr").last.locator("td")
    assert [cells.nth(i).inner_text() for i in range(3)] == ["1%", "61%", "100%"]
    shown.page.get_by_role("button", name="Show the scores").click()
    assert "±" in cells.first.inner_text()


def test_hovering_explains_a_cell_and_a_point(browser, address):
    """A cell states n and its paired difference; a chart opens a tooltip with the step."""
    shown = Shown(browser, address)
    cell = shown.page.locator(".matrix td").nth(3)
    assert "n = 256" in cell.get_attribute("title")
    assert "same items" in cell.get_attribute("title")
    assert cell.get_attribute("title") == cell.get_attribute("aria-label")
    shown.draw_all()
    point = (
        shown.page.locator(".chart")
        .first.locator("path[aria-roledescription=point]")
        .first
    )
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    shown.page.locator("#vg-tooltip-element.visible").wait_for(timeout=5_000)
    assert "step" in shown.page.locator("#vg-tooltip-element").inner_text()


def test_hostile_text_stays_text(browser, finished_run, tmp_path):
    """Markup in a title is shown letter by letter, and no script of it runs."""
    run = Path(shutil.copytree(finished_run, tmp_path / "run"))
    toml = run / "run.toml"
    hostile = "<img src=x onerror=document.title=1>"
    toml.write_text(toml.read_text().replace("plain Korean text", hostile))
    shown = Shown(browser, page.write([run], tmp_path / "page.html").as_uri())
    shown.draw_all()
    assert hostile in shown.page.locator("summary").first.inner_text()
    assert shown.page.title() != "1"
    assert shown.complaints == []


@pytest.mark.parametrize("state", ["refused", "interrupted"])
def test_runs_that_did_not_finish(browser, half_run, tmp_path, state):
    """A refused run says which gate and why; an interrupted one shows what there is."""
    run = half_run
    if state == "refused":
        from mgk_core.contract.errors import GateRefused
        from mgk_core.run.runner import run_pipeline

        run = tmp_path / "refused"
        with pytest.raises(GateRefused):
            run_pipeline(
                "textmodel",
                out=run,
                overrides=[
                    "run.threads=1",
                    "phases.plain_text.gate.min-gain.absolute=1000",
                ],
            )
    shown = Shown(browser, page.write([run], tmp_path / "page.html").as_uri())
    shown.draw_all()
    assert shown.complaints == []
    words = {"refused": "refused by its gates", "interrupted": "not started"}[state]
    assert words in shown.page.locator("body").inner_text()


def test_a_hundred_phases_draw_only_what_is_seen(browser, finished_run, tmp_path):
    """Opening costs no chart that is folded away, so that a long run's page is ready at once."""
    record = read(finished_run)
    many = [evolve(p, name=f"{p.name}-{i}") for i in range(34) for p in record.phases][
        :100
    ]
    path = tmp_path / "many.html"
    page.replace_text(path, page.render([evolve(record, phases=many)]))
    shown = Shown(browser, path.as_uri())
    shown.page.locator("footer").wait_for(state="attached")
    assert shown.page.locator("article > section > details").count() >= 100
    assert shown.page.locator(".chart").count() > 600
    assert shown.page.locator(".chart[data-drawn]").count() < 10
    ready = "performance.timing.domInteractive - performance.timing.responseEnd"
    print(f"ready after {shown.page.evaluate(ready)} ms")


def test_paper_gets_everything(browser, address, tmp_path):
    """Printing opens what is folded and draws it."""
    shown = Shown(browser, address)
    shown.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    shown.page.wait_for_function(
        "document.querySelectorAll('.chart:not([data-drawn])').length === 0",
        timeout=60_000,
    )
    assert shown.page.locator("details:not([open])").count() == 0
    assert len(shown.page.pdf()) > 50_000

"""The HTML report: what it says of a run, and that nothing in a run can break out of it."""

from __future__ import annotations

import html.parser
import json
import shutil
import threading
import time
import urllib.request
from pathlib import Path

import pytest
from click.testing import CliRunner

from mgk_core.contract.errors import InputError
from mgk_report import compare, page, story
from mgk_report.command import report
from mgk_report.matrix import matrix, share_of_gain
from mgk_report.record import read
from mgk_report.server import serve

pytest.importorskip("vl_convert")
pytest.importorskip("jinja2")

HOSTILE = "</script><img src=x onerror=alert(1)>\"'&{{7*7}}"


class Tags(html.parser.HTMLParser):
    """Collects elements, and the JSON of charts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.charts: list[dict] = []
        self._chart = False

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._chart = (tag, dict(attrs).get("type")) == ("script", "application/json")

    def handle_data(self, data):
        if self._chart:
            self.charts.append(json.loads(data))
            self._chart = False


def parsed(run: Path) -> Tags:
    tags = Tags()
    tags.feed(page.render([read(run)]))
    return tags


@pytest.fixture
def copy(finished_run, tmp_path):
    """Return a copy of a finished run that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_run_writes_its_report_by_itself(finished_run):
    """With the extra installed the file is there when the run has finished, and says so."""
    text = (finished_run / page.NAME).read_text()
    assert "3 phases on reference: finished." in text
    assert "All gates passed." in text


def test_the_report_is_no_damage(finished_run):
    """`mgk verify` accepts a run with its report."""
    from mgk_cli.main import invoke

    assert invoke(["verify", str(finished_run)]) == 0


def test_every_score_of_the_matrix_is_shown(finished_run):
    """Each cell has the value and the error that retention.json has."""
    table = json.loads((finished_run / "retention.json").read_text())
    rows = matrix(read(finished_run)).rows
    for i, row in enumerate(rows):
        for j, cell in enumerate(row.cells):
            assert cell.value == f"{table['R'][i][j]:.4g} ± {table['stderr'][i][j]:.2g}"
    assert rows[0].name == "baseline"
    assert [c.taught for c in rows[1].cells] == [True, False, False]


def test_charts_hold_what_was_recorded(finished_run):
    """The loss curve of a phase is that of metrics.jsonl, point by point."""
    losses = [s["loss"] for s in read(finished_run).phases[0].steps]
    curves = [c for c in parsed(finished_run).charts if "layer" in c]
    assert [v["loss"] for v in curves[0]["data"]["values"]] == losses
    assert len(curves) == 3


@pytest.mark.parametrize("skipped", ["first", "all"])
def test_a_step_without_a_loss_is_left_out(copy, skipped):
    """Where every micro-batch of a window was skipped there is no loss, and the page is made all the same."""
    path = copy / "metrics.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [
        e for e in events if (e["event"], e.get("phase")) == ("step", "plain_text")
    ]
    for step in steps[:1] if skipped == "first" else steps:
        step.update(loss=None, terms=None, grad_norm=None)
    path.write_text("".join(json.dumps(e) + "\n" for e in events))
    facts = dict(story.phases(read(copy))[0].facts)
    last = f"{steps[-1]['loss']:.4g}" if skipped == "first" else ""
    assert facts["loss"] == (f"{steps[1]['loss']:.4g} → {last}" if last else "–")
    assert parsed(copy).charts


def test_a_gain_within_noise_has_no_share(copy):
    """A share of a difference that is not significant says nothing, so none is printed."""
    path = copy / "retention.json"
    table = json.loads(path.read_text())
    for pair in table["paired"]:
        pair["stderr"] = 1e9
    assert share_of_gain(table, 3, 0) == "n.s."
    table["paired"] = []
    assert share_of_gain(table, 3, 0).endswith("%")


def test_what_was_taken_back_is_in_the_headline(finished_run):
    """Plain merging forgets: the first thing that a reader sees says how much is left."""
    assert "Of earlier gains the model keeps 1% of plain_text" in story.headline(
        read(finished_run)
    )


def test_hostile_names_are_escaped(copy):
    """Titles, labels, notes and settings come from anywhere; none of them becomes markup."""
    before = [tag for tag, _ in parsed(copy).tags]
    toml = copy / "run.toml"
    text = toml.read_text()
    toml.write_text(text.replace('"plain Korean text"', json.dumps(HOSTILE)))
    table = json.loads((copy / "retention.json").read_text())
    table["probes"][0]["metric"] = HOSTILE
    table["rows"][1]["mark"] = HOSTILE
    (copy / "retention.json").write_text(json.dumps(table))
    merge = copy / "phases/0-plain_text/merge.json"
    merged = json.loads(merge.read_text())
    merged["weights"][0]["name"] = HOSTILE
    merge.write_text(json.dumps(merged))
    found = parsed(copy)
    assert [tag for tag, _ in found.tags if tag != "small"] == [
        t for t in before if t != "small"
    ]
    assert not any(tag == "img" for tag, _ in found.tags)
    assert any(
        v.get("name") == HOSTILE
        for chart in found.charts
        for v in chart["data"]["values"]
    )
    assert "49" not in story.phases(read(copy))[0].title


def test_nothing_is_fetched(finished_run):
    """No element names an address, and the page's own policy forbids connections."""
    tags = parsed(finished_run).tags
    assert not [a for _, a in tags for k in ("src", "href") if a.get(k)]
    policy = next(a["content"] for tag, a in tags if a.get("http-equiv"))
    assert "default-src 'none'" in policy
    assert "connect-src" not in policy


def test_a_damaged_file_is_noted_and_the_rest_is_shown(copy):
    """A half-written line, a broken JSON file and a missing one do not keep the page from being made."""
    with (copy / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "phase": "mcq"')
    (copy / "phases/1-medical_dictionary/merge.json").write_text("{")
    (copy / "base/scores.json").unlink()
    text = page.render([read(copy)])
    assert "could not parse this line" in text
    assert "merge.json: cannot be read" in text


def test_an_unfinished_run_can_be_read(half_run):
    """Phases that have not begun are shown as such."""
    run = read(half_run)
    assert run.status == "unfinished"
    assert [p.result for p in run.phases] == ["committed", "waiting", "waiting"]
    assert "not started" in page.render([run])


def test_numbers_that_are_not_finite_leave_gaps(copy):
    """NaN and infinity are no JSON; a diverged run's page is drawn all the same."""
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    for event in events:
        if event["event"] == "step":
            event["grad_norm"] = "nan"
    (copy / "metrics.jsonl").write_text("\n".join(map(json.dumps, events)))
    assert parsed(copy).charts


def test_runs_side_by_side(finished_run, half_run):
    """Settings that differ are listed; a score that is the same differs by nothing."""
    runs = [read(finished_run), read(finished_run)]
    assert compare.settings(runs) == []
    assert not any(row.beyond_noise for row in compare.scores(runs))
    text = page.render([read(finished_run), read(half_run)])
    assert "2 runs side by side" in text


def test_the_command_writes_where_it_is_asked_to(finished_run, tmp_path):
    """It prints the file's name; what is not a run directory, or several runs without --out, is refused."""
    out = tmp_path / "two.html"
    done = CliRunner().invoke(
        report, [str(finished_run), str(finished_run), "--out", str(out)]
    )
    assert done.output.strip() == str(out)
    assert out.stat().st_size < 5_000_000
    with pytest.raises(InputError, match="not a run directory"):
        CliRunner().invoke(report, [str(tmp_path)], catch_exceptions=False)
    with pytest.raises(InputError, match="not a run directory"):
        CliRunner().invoke(report, [str(tmp_path / "nope")], catch_exceptions=False)
    with pytest.raises(InputError, match="--out"):
        CliRunner().invoke(report, [str(finished_run)] * 2, catch_exceptions=False)


def test_watch_serves_the_page_and_says_when_it_is_old(copy):
    """The stream speaks when a file of the run changes, and not before."""
    with serve([copy], 0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(f"{address}/", timeout=20) as answer:
            assert b"data-live" in answer.read()
        with urllib.request.urlopen(f"{address}/events", timeout=20) as stream:
            time.sleep(0.1)
            with (copy / "metrics.jsonl").open("a") as file:
                file.write('{"event": "note"}\n')
            assert stream.readline() == b"data: changed\n"
        server.shutdown()


def test_a_hundred_phases_stay_small(copy):
    """Cost grows with what is shown, not with the library: 100 phases are one file under 5 MB."""
    ledger = json.loads((copy / "ledger.json").read_text())
    text = (copy / "run.toml").read_text()
    lines = (copy / "metrics.jsonl").read_text().splitlines()
    steps = [json.loads(x) for x in lines if '"event": "step"' in x and '"mcq"' in x]
    for number in range(100):
        name = f"phase_{number}"
        text += f'\n[phases.{name}]\ntitle = "one of many"\n'
        ledger["phases"].append({**ledger["phases"][2], "phase": name})
        lines += [json.dumps({**s, "phase": name}) for s in steps]
    (copy / "run.toml").write_text(text)
    (copy / "ledger.json").write_text(json.dumps(ledger))
    (copy / "metrics.jsonl").write_text("\n".join(lines))
    assert len(page.render([read(copy)])) < 5_000_000


def test_answers_are_shown_side_by_side_changed_ones_first(copy):
    """The base's and the latest answer to the same prompt; what did not change comes last."""
    for name, texts in (("base", ["a", "same"]), ("phases/2-mcq", ["b <b>", "same"])):
        path = copy / name / "scores.json"
        row = json.loads(path.read_text())
        pairs = zip(("first", "second"), texts, strict=True)
        row["scores"][0]["answers"] = [{"prompt": p, "text": t} for p, t in pairs]
        path.write_text(json.dumps(row))
    run = read(copy)
    found = story.answers(run)
    assert [(a.prompt, a.before, a.after) for a in found] == [
        ("first", "a", "b <b>"), ("second", "same", "same"),
    ]  # fmt: skip
    assert "b &lt;b&gt;" in page.render([run])

"""What a notebook shows of a run's result."""

import json
from html.parser import HTMLParser

import pytest

import mgk
from mgk_core.run.result_html import result_html


class Words(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.text = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)

    def handle_data(self, data):
        self.text += data


def shown(html):
    words = Words()
    words.feed(html)
    return words


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("html") / "run"
    return mgk.run("textmodel", out=out, set=["run.threads=1"])


def test_every_score_and_a_curve_of_each_phase(result):
    """The values are those of the matrix, with their errors."""
    words = shown(result._repr_html_())
    for row, errors in zip(
        result.retention["R"], result.retention["stderr"], strict=True
    ):
        for value, error in zip(row, errors, strict=True):
            assert f"{value:.4g} ± {error:.2g}" in words.text
    assert words.tags.count("polyline") == 3
    assert "finished" in words.text


def test_names_are_escaped_and_gaps_left_empty(tmp_path):
    """Labels come from anywhere; a step without a loss and a half-written line are left out."""
    name = "<img src=x>"
    table = {
        "probes": [{"name": name, "metric": name, "higher_is_better": True}],
        "rows": [{"name": name}, {"name": "one"}],
        "R": [[None], ["nan"]],
        "stderr": [[None], [None]],
    }
    steps = [{"event": "step", "phase": name, "loss": loss} for loss in (None, 2.0)]
    (tmp_path / "metrics.jsonl").write_text(
        "\n".join(map(json.dumps, steps)) + '\n{"event":'
    )
    words = shown(result_html(tmp_path, table, finished=False))
    assert "img" not in words.tags
    assert words.tags.count("polyline") == 1
    assert "not finished" in words.text

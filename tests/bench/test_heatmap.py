"""The picture of the retention matrix."""

import pytest

from mgk_bench.heatmap import colours, heatmap
from mgk_core.contract.errors import InputError

TABLE = {
    "probes": [
        {"name": "정답률", "higher_is_better": True},
        {"name": "ppl", "higher_is_better": False},
    ],
    "rows": [
        {"name": "base", "mark": ""},
        {"name": "text", "mark": ""},
        {"name": "mcq", "mark": "kept apart"},
    ],
    "R": [[0.2, 10.0], [0.6, 30.0], [None, 5.0]],
}


def test_colours_turn_every_probe_the_same_way():
    """Better than row 0 is positive, whichever direction the metric has; the largest move is 1."""
    assert colours(TABLE) == [[0.0, 0.0], [1.0, -1.0], [None, 0.25]]


def test_probe_that_never_moves_is_neutral():
    """No move, no division by zero."""
    still = {**TABLE, "R": [[0.2, 10.0]] * 3}
    assert colours(still) == [[0.0, 0.0]] * 3


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize(("name", "head"), [("r.png", b"\x89PNG"), ("r.svg", b"<?xml")])
def test_pictures_are_written(tmp_path, name, head):
    """PNG and SVG by the file's ending, also with probes that were not measured."""
    pytest.importorskip("matplotlib")
    path = heatmap(TABLE, tmp_path / "new" / name)
    assert path.read_bytes().startswith(head)


def test_other_endings_are_refused(tmp_path):
    """The message says which there are."""
    with pytest.raises(InputError, match=r"\.svg"):
        heatmap(TABLE, tmp_path / "r.bmp")

"""The runner of the documentation's code finds what is wrong."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def blocks(monkeypatch, tmp_path):
    spec = importlib.util.spec_from_file_location(
        "docs_blocks_under_test", ROOT / "docs" / "blocks.py"
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def run(blocks, tmp_path, text, *, slow=False):
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    return blocks.run_page(page, tmp_path, blocks.environment_for(tmp_path), slow=slow)


def test_blocks_share_a_directory_and_outputs_are_compared(blocks, tmp_path):
    """A file block is there for the next one; what was printed is held against what the page shows."""
    text = "<!-- file a.toml -->\n```toml\nx = 1\n```\n<!-- run -->\n```bash\ncat a.toml; echo took 3 s\n```\n"
    shown = "<!-- output -->\n```text\nx = 1\ntook … s\n```\n"
    assert run(blocks, tmp_path, text + shown) == 1
    with pytest.raises(blocks.BlockError, match="x = 2"):
        run(blocks, tmp_path, text + shown.replace("x = 1", "x = 2"))
    with pytest.raises(blocks.BlockError, match="x = 1"):
        run(blocks, tmp_path, text + "<!-- output -->\n```text\ntook … s\nx = 1\n```\n")


def test_a_failing_block_is_named_with_its_line(blocks, tmp_path):
    """An unexpected exit code is an error, an expected one is not."""
    with pytest.raises(blocks.BlockError, match=r"page.md:2: ended with 1, not 0"):
        run(blocks, tmp_path, "<!-- run -->\n```bash\nfalse; true\n```\n")
    with pytest.raises(blocks.BlockError, match="ended with 0, not 2"):
        run(blocks, tmp_path, "<!-- run exit=2 -->\n```bash\ntrue\n```\n")
    assert run(blocks, tmp_path, "<!-- run exit=2 -->\n```bash\nexit 2\n```\n") == 1


def test_python_is_a_program_and_may_stand_inside_another(blocks, tmp_path):
    """A snippet takes the place of the line HERE in the file that surrounds it."""
    (tmp_path / "docs" / "snippets").mkdir(parents=True)
    (tmp_path / "docs" / "snippets" / "around.py").write_text(
        "x = 2\n# HERE\nassert x == 3\n", encoding="utf-8"
    )
    assert (
        run(blocks, tmp_path, "<!-- run inside=around.py -->\n```python\nx += 1\n```\n")
        == 1
    )
    with pytest.raises(blocks.BlockError, match="AssertionError"):
        run(blocks, tmp_path, "<!-- run inside=around.py -->\n```python\nx += 2\n```\n")


def test_slow_blocks_wait_for_the_slow_tests(blocks, tmp_path):
    """A slow block and its output are passed over in the fast tests."""
    text = "<!-- run slow -->\n```bash\nexit 7\n```\n<!-- output -->\n```text\nnothing\n```\n"
    assert run(blocks, tmp_path, text) == 0
    with pytest.raises(blocks.BlockError, match="ended with 7"):
        run(blocks, tmp_path, text, slow=True)

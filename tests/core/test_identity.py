"""What resume compares: each change is named with both values, and accepted by key."""

from __future__ import annotations

import pytest

from mgk_core.contract.errors import InputError
from mgk_core.run.identity import code_digest, compare, tokenizer_digest


def test_nothing_changed():
    """Equal is equal."""
    assert compare({"a": "1"}, {"a": "1"}, []) == []


def test_every_change_is_named_with_both_values():
    """Changed, gone and new keys, all at once."""
    with pytest.raises(InputError) as error:
        compare(
            {"a": "1", "b": "2", "alike": "x"}, {"a": "3", "c": "4", "alike": "x"}, []
        )
    for line in ("a: was 1, is 3", "b: was 2, is absent", "c: was absent, is 4"):
        assert line in str(error.value)
    assert "alike" not in str(error.value)


@pytest.mark.parametrize(
    ("accept", "left"),
    [
        (["a.x"], ["a.y", "b"]),
        (["a"], ["b"]),
        (["a", "b"], []),
        (["a."], ["a.x", "a.y", "b"]),
    ],
)
def test_changes_are_accepted_by_key_or_prefix(accept, left):
    """A prefix ends at a dot; what is not accepted is still refused."""
    old, new = {"a.x": "1", "a.y": "1", "b": "1"}, {"a.x": "2", "a.y": "2", "b": "2"}
    if left:
        with pytest.raises(InputError) as error:
            compare(old, new, accept)
        named = [
            line.split(":")[0].strip()
            for line in str(error.value).splitlines()
            if ": was" in line
        ]
        assert named == left
    else:
        assert compare(old, new, accept) == [
            "a.x: was 1, is 2",
            "a.y: was 1, is 2",
            "b: was 1, is 2",
        ]


def test_a_long_value_is_cut_in_the_message():
    """A path list of a megabyte does not fill the screen."""
    with pytest.raises(InputError) as error:
        compare({"a": "x" * 10**6}, {"a": "y" * 10**6}, [])
    assert len(str(error.value)) < 1000


class Words:
    """A tokenizer with a vocabulary."""

    def __init__(self, **words):
        self.words = words

    def get_vocab(self):
        return self.words


def test_a_tokenizer_is_known_by_its_vocabulary():
    """Order does not count, every word and number does."""
    assert tokenizer_digest(Words(a=1, b=2)) == tokenizer_digest(Words(b=2, a=1))
    assert (
        len({tokenizer_digest(t) for t in (None, Words(a=1), Words(a=2), Words(b=1))})
        == 4
    )


def test_code_is_known_by_its_sources(tmp_path, monkeypatch):
    """Content and place of each file of a package count; a single module is its own file."""
    import sys

    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "some_plugin"
    (package / "inner").mkdir(parents=True)
    for name in ("__init__.py", "plugin.py", "inner/a.py", "inner/b.py"):
        (package / name).write_text(f"# {name[-4]}\n")
    seen = [code_digest("some_plugin.plugin")]
    (package / "plugin.py").write_text("# other\n")
    seen.append(code_digest("some_plugin.plugin:thing"))
    a, b = package / "inner/a.py", package / "inner/b.py"
    texts = a.read_text(), b.read_text()
    a.write_text(texts[1])
    b.write_text(texts[0])
    seen.append(code_digest("some_plugin"))
    (tmp_path / "single.py").write_text("1")
    seen += [code_digest("single"), code_digest("no_such_module_at_all")]
    assert len(set(seen)) == 5
    assert seen[-1] == "unknown"
    assert "some_plugin" not in sys.modules

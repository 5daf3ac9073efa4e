"""``mgk new-plugin`` and ``mgk check-plugin``: what they say."""

import pytest
from attrs import frozen

import mgk_core.testing


def test_new_plugin_writes_and_says_what_comes_next(mgk, tmp_path):
    """The files, one a line, and the command to install them."""
    out = tmp_path / "mine"
    ran = mgk("new-plugin", "adapter", "my-gain", "--dir", out)
    assert ran.code == 0
    *files, last = ran.out.splitlines()
    assert files == sorted(str(p) for p in out.rglob("*") if p.is_file())
    assert last.startswith(f"next: pip install -e '{out}[test]'")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("adapter", "../evil"), "small letters, digits and single hyphens"),
        (("adapter", "lora"), "is claimed by the plugin 'lora'"),
        (("adaptr", "mine"), "did you mean 'adapter'?"),
    ],
)
def test_new_plugin_refuses(mgk, tmp_path, monkeypatch, arguments, said):
    """A name that leaves the directory, a taken one, an unknown kind: exit code 2, nothing written."""
    monkeypatch.chdir(tmp_path)
    ran = mgk("new-plugin", *arguments)
    assert ran.code == 2
    assert said in ran.err
    assert list(tmp_path.iterdir()) == []


@frozen
class Law:
    """One answer of the kit."""

    law: str
    subject: str
    ok: bool | None
    detail: str = ""


@pytest.mark.parametrize(
    ("second", "code", "end"),
    [(True, 0, "all 2 tests passed"), (False, 2, "1 of 2 tests failed")],
)
def test_check_plugin_draws_what_the_kit_says(mgk, monkeypatch, second, code, end):
    """A table of laws; one broken law is exit code 2, one that does not apply is none."""
    laws = [
        Law("identity", "lora", True),
        Law("merge", "lora", second, "off by 2"),
        Law("ties", "lora", None),
    ]
    monkeypatch.setattr(
        mgk_core.testing, "check_plugin", lambda name, **_: laws, raising=False
    )
    ran = mgk("check-plugin", "lora")
    assert ran.code == code
    assert ran.out.splitlines()[-1] == end
    assert "n/a" in ran.out
    assert [r["ok"] for r in mgk("check-plugin", "lora", "--json").rows] == [
        True,
        second,
        None,
    ]


@pytest.mark.parametrize("columns", [None, 60, 80, 120, 200])
def test_check_plugin_always_says_why(mgk, monkeypatch, columns):
    """However narrow the terminal: on which case a law is broken and by how much, and why one does not apply."""
    why = f"linear, float32: outputs differ by 0.25, 1e-06 is allowed; {'the weights are not those of before; ' * 3}first"
    laws = [
        Law("moves between dtypes and devices", "adapter mine", True, "on 10 of 10"),
        Law("merged equals unmerged", "adapter mine", False, why),
        Law(
            "additive deltas add up",
            "adapter mine",
            None,
            "it promises no additive delta (factors)",
        ),
    ]
    monkeypatch.setattr(
        mgk_core.testing, "check_plugin", lambda name, **_: laws, raising=False
    )
    if columns is None:
        monkeypatch.delenv("COLUMNS")
    else:
        monkeypatch.setenv("COLUMNS", str(columns))
    said = " ".join(mgk("check-plugin", "mine").out.split())
    assert said.count(why) == 1
    assert said.count("it promises no additive delta (factors)") == 1


def test_check_plugin_holds_the_shipped_merge_rule_to_its_laws(mgk):
    """The real kit over a real plugin; a plugin that is not there is answered with those that are."""
    ran = mgk("check-plugin", "merge")
    assert (ran.code, ran.out.splitlines()[-1]) == (0, "all 12 tests passed")
    ran = mgk("check-plugin", "lorra")
    assert ran.code == 2
    assert "did you mean 'lora'?" in ran.err

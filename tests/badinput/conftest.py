"""One wrong input, one answer: exit code 2 or 3, the place and the mend, nothing touched."""

from __future__ import annotations

import hashlib
import io
import re
import signal
import unicodedata
from contextlib import redirect_stderr, redirect_stdout

import pytest

from mgk_cli.main import invoke

TEXTMODEL = 'extends = "textmodel"\n[run]\nthreads = 1\n'
PATIENCE = 60  # seconds
SHOWN = 4000  # characters of a message at most: nobody reads more
MEND = re.compile(
    r"expected|did you mean|known: |known types|'mgk |see '|--[a-z]|at most|must be|needs |choose|restore|lower |give |"
    r"save |set |remove|raise |free |mend|bring|wait|quote |install|put |look |name at least|would take|load |use |take |leave|map it|convert|fill"
)
"""What would be right, or what to do: one of these words is in every answer."""


class Answer:
    """What a command said. code: its exit code."""

    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err


def mgk(*arguments):
    """Run one command line in this process, as the console script does."""
    out, err = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(PATIENCE)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = invoke([str(a) for a in arguments])
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Answer(code, out.getvalue(), err.getvalue())


@pytest.fixture(name="mgk")
def mgk_fixture():
    """Run command lines in this process."""
    return mgk


def _too_long(number, frame):
    raise TimeoutError("took wrong input for right and went to work")


def state(folder):
    """Return what a folder holds: names, kinds, link targets, digests."""
    found = {}
    for path in folder.rglob("*"):
        key = str(path.relative_to(folder))
        if path.is_symlink():
            found[key] = f"-> {path.readlink()}"
        elif path.is_file() and path.stat().st_size < 2**25:
            found[key] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[key] = "folder" if path.is_dir() else str(path.stat().st_size)
    return found


def around(folder, kept):
    """Return what a folder holds, without what the command may write to."""
    return {
        k: v
        for k, v in state(folder).items()
        if k.split("/")[1:2] not in [[name] for name in kept]
    }


def total(folder):
    """Return how many bytes all files below a folder have on the disk, holes left out."""
    files = [p.stat() for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    return sum(min(f.st_size, 512 * f.st_blocks) for f in files)


def write(path, content):
    """Make a file: text, bytes, or whatever a function makes of the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if callable(content):
        content(path)
    elif isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content, encoding="utf-8")


@pytest.fixture(scope="session")
def tokens(tmp_path_factory):
    """A place for tokenised data, which is no part of what is asked."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def answered(tmp_path, monkeypatch, tokens, counted):
    """Check that a command line is answered; see the module."""
    work = tmp_path / "work"
    work.mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MGK_CACHE", str(tokens))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "200")

    def check(arguments, *words, files=(), codes=(2, 3), kept=()):
        for name, content in dict(files).items():
            write(tmp_path / "work" / name, content)
        before, size = around(tmp_path, kept), total(tmp_path)
        count, given = (
            counted("bad inputs answered", 1),
            counted("bytes that the user gave, unchanged", size),
        )
        answer = mgk(*arguments)
        said = answer.err or answer.out
        assert answer.code in codes, (answer.code, answer.out, said)
        assert "Traceback" not in said + answer.out
        assert "mgk has a fault" not in said, said
        assert MEND.search(said), ("neither what was expected nor what to do", said)
        for word in words:
            assert word in said, (word, said)
        assert len(said) < SHOWN, said
        assert not [
            c for c in said if unicodedata.category(c) in {"Cc", "Cf"} and c != "\n"
        ], repr(said)
        assert around(tmp_path, kept) == before
        given.right = size
        count.right += 1
        return answer

    return check

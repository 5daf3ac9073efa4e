"""Running the command line inside the test's process, as its console script would."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout

import pytest
from attrs import frozen

from mgk_cli.main import invoke


@frozen
class Ran:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def rows(self):
        """The JSON lines of standard output."""
        return [json.loads(line) for line in self.out.splitlines()]


def run(*arguments):
    """Run one command line in this process."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = invoke([str(a) for a in arguments])
    return Ran(code, out.getvalue(), err.getvalue())


def process(*arguments, timeout=120, **options):
    """Run one command line in a process of its own."""
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "100",
        **options.pop("env", {}),
    }
    command = [sys.executable, "-m", "mgk_cli", *map(str, arguments)]
    done = subprocess.run(
        command,
        capture_output=True,
        timeout=timeout,
        env=environment,
        check=False,
        **options,
    )
    return Ran(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.fixture
def mgk(monkeypatch):
    """Run commands with tables 100 columns wide."""
    monkeypatch.setenv("COLUMNS", "100")
    return run


@pytest.fixture
def mgk_process():
    """Run commands in processes of their own."""
    return process

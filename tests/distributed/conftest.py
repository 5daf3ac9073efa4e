"""Ranks on this machine, over gloo, with one CPU thread each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("worker.py")
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TORCH_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """Return ``run(count, *parts, limit=seconds)``: the directory in which so many ranks did parts of worker.py."""

    def run(count, *parts, limit=150):
        where = tmp_path_factory.mktemp("ranks")
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", str(count), str(WORKER), str(where), *parts),
        ]
        done = subprocess.run(
            command,
            env=os.environ | ENVIRONMENT | {"MGK_CACHE": str(where / "cache")},
            capture_output=True,
            text=True,
            timeout=limit,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return where

    return run


@pytest.fixture(scope="session")
def mgk():
    """Return ``start(*arguments)``: the command line as a process of its own."""

    def start(*arguments, **more):
        return subprocess.Popen(
            [sys.executable, "-m", "mgk_cli", *map(str, arguments)],
            env=os.environ | ENVIRONMENT | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start

"""Converts a small GGUF file as the default base is converted, in children that are killed on the way.

Called with a folder that holds the packages (see ``test_faults_conversion``), the cache's folder and
the number of kills; prints one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import sys
import time
from pathlib import Path

import torch

from mgk_hf import cache, gemma_q4


def convert() -> None:
    """Convert in a child of its own, so that each begins from the same state."""
    child = os.fork()
    if child == 0:
        gemma_q4.prepare()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status == 0, status


def killed(after: float) -> bool:
    """Begin a conversion and kill it; whether it was still under way."""
    child = os.fork()
    if child == 0:
        gemma_q4.prepare()
        os._exit(0)
    time.sleep(after)
    os.kill(child, 9)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)


def found(folder: Path) -> dict[str, str]:
    """Return file → digest of everything in the cache, half-made directories too."""
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in files
    }


def main(folder: Path, kills: int) -> None:
    """Convert once, then kill and convert again, as often as asked."""
    torch.set_num_threads(1)
    cache.JUST_MADE = 0.0
    convert()  # imports what the children need
    shutil.rmtree(folder)
    began = time.monotonic()
    convert()
    whole, length = found(folder), time.monotonic() - began
    rng = random.Random(0)
    stopped = right = partial = 0
    while stopped < kills:
        shutil.rmtree(folder)
        if not killed(rng.random() * length):
            continue
        stopped += 1
        partial += (
            any(not name.startswith(".") for name in os.listdir(folder))
            if folder.is_dir()
            else 0
        )
        convert()
        right += found(folder) == whole
    print(json.dumps({"files": len(whole), "right": right, "partial": partial}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

"""Peak memory of reading a large file, from memory and streamed: the figures in docs/how-to/own-data.md.

    python benchmarks/stream_memory.py MEGABYTES [stream]

Writes a file of that size with rows of random Korean and English words, loads it as `text` data for tiny-gemma, makes
a hundred batches, and prints the time and the most that the process held, beside what it held before.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import time
from pathlib import Path

import mgk
from mgk_core.model.device import process_peak, resident

WORDS = [
    "심장",
    "간",
    "폐",
    "콩팥",
    "비장",
    "혈압",
    "당뇨병",
    "치료",
    "증상",
    "patient",
    "blood",
    "pressure",
    "treatment",
    "dose",
    "liver",
]


def main() -> None:
    """Measure one way of reading."""
    size, stream = int(sys.argv[1]) * 2**20, "stream" in sys.argv[2:]
    draw = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        with path.open("w", encoding="utf-8") as file:
            while file.tell() < size:
                text = " ".join(draw.choices(WORDS, k=400))
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        bundle = mgk.load_base("hf", id="tiny-gemma", device="cpu")
        before, began = resident(), time.perf_counter()
        data = mgk.load_data(
            bundle, type="text", train=str(path), stream=stream, cache=False, length=512
        )
        loaded = time.perf_counter() - began
        for row in range(100):
            data.train.batch([row * 7919 % len(data.train)])
        whole = time.perf_counter() - began
        grown = process_peak() - before
        print(
            f"{size / 2**20:.0f} MB, stream {stream}: {len(data.train):,} rows of training, {grown / 2**20:,.0f} MB"
            f" more at the peak, loaded in {loaded:.0f} s, 100 batches in {whole - loaded:.1f} s"
        )


if __name__ == "__main__":
    main()

"""The suite ``korean`` with a real medical dictionary as its dictionary phase, and held-out codes as its questions.

    MGK_REALDATA=FOLDER python benchmarks/kcd.py [--method replay …] [--seeds 1] [--mmlu 200] [--out FOLDER]

FOLDER holds kcd/kcd_a_to_m.tsv (columns kcd, en, ko) and mmlu/*.csv; nothing of it is copied into the project. The
three-character codes are split by code: 300 or more for testing, a few for dev, the others are learnt (English →
Korean). A test question has five options; the wrong ones are other test codes of the same chapter. English medical
questions of MMLU are one more probe that no phase teaches.
"""

import argparse
import csv
import os
import random
import tempfile
from pathlib import Path

from mgk_bench.korean import PIPELINE, Cut, run_cell
from mgk_bench.korean_table import as_text, write
from mgk_bench.methods import KOREAN
from mgk_core.config.catalog import find_pipeline

TEST, DEV = 340, 40


def dictionary(source: Path, folder: Path) -> dict[str, object]:
    """Write train, dev and test; return the dictionary phase's data."""
    with source.open(encoding="utf-8", newline="") as file:
        rows = [r for r in csv.DictReader(file, delimiter="\t") if len(r["kcd"]) == 3]
    random.Random(0).shuffle(rows)
    splits = {
        "test": rows[:TEST],
        "dev": rows[TEST : TEST + DEV],
        "train": rows[TEST + DEV :],
    }
    for split, chosen in splits.items():
        with (folder / f"{split}.tsv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, ["kcd", "en", "ko"], delimiter="\t")
            writer.writeheader()
            writer.writerows(chosen)
    print(
        ", ".join(f"{split}: {len(chosen)} codes" for split, chosen in splits.items())
    )
    return {
        "layout": "kcd",
        **{split: str(folder / f"{split}.tsv") for split in splits},
    }


def questions(source: Path, folder: Path, count: int) -> str:
    """Write ``count`` of the questions, spread evenly over the files; return where."""
    rows = []
    for path in sorted(source.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows += list(csv.reader(file))
    chosen = [rows[i * len(rows) // count] for i in range(min(count, len(rows)))]
    with (folder / "mmlu.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(chosen)
    return str(folder / "mmlu.csv")


def accuracies(cells) -> str:
    """One line a cell: accuracy of the questions after each phase, and the exact test of what their phase changed."""
    lines = []
    for cell in cells:
        rows = " → ".join(f"{row['dictionary']:.3f}" for row in cell.accuracy)
        last = [
            p
            for p in cell.paired
            if p["probe"] == "dictionary-accuracy" and p["from"] == "base"
        ]
        tested = (
            f"; base to end {last[-1]['difference']:+.3f}, p = {last[-1]['p']:.2g} ({last[-1]['test']})"
            if last
            else ""
        )
        mmlu = " → ".join(f"{row['mmlu']:.3f}" for row in cell.accuracy)
        lines.append(
            f"{cell.method}, seed {cell.seed}: KCD {rows} (n {cell.n['dictionary']}){tested}; MMLU {mmlu}"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    names = [m.name for m in KOREAN if m.name not in ("naive", "default")]
    parser.add_argument(
        "--method",
        action="append",
        default=[],
        choices=names,
        help="beside naive and default",
    )
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--mmlu", type=int, default=200)
    parser.add_argument("--base")
    parser.add_argument("--steps", type=int)
    parser.add_argument("--items", type=int)
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    if "MGK_REALDATA" not in os.environ:
        raise SystemExit("set MGK_REALDATA to the folder that holds kcd/ and mmlu/")
    real = Path(os.environ["MGK_REALDATA"])
    first = find_pipeline(PIPELINE).phases[0].name
    with tempfile.TemporaryDirectory(prefix="mgk-kcd-") as name:
        folder = Path(name)
        mmlu = {
            "base_questions": {"mmlu": questions(real / "mmlu", folder, asked.mmlu)},
            "base_layout": "mmlu",
        }
        data = {
            "dictionary": dictionary(real / "kcd" / "kcd_a_to_m.tsv", folder),
            first: mmlu,
        }
        cut = Cut(base=asked.base, steps=asked.steps, items=asked.items, data=data)
        methods = [m for m in KOREAN if m.name in ("naive", "default", *asked.method)]
        cells = [run_cell(m, seed, cut) for m in methods for seed in range(asked.seeds)]
    print(as_text(cells))
    print(accuracies(cells))
    if asked.out is not None:
        write(asked.out, cells, (asked.base, asked.steps, asked.items, "kcd"))


if __name__ == "__main__":
    main()

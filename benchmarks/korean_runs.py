"""The table of ``mgk bench forgetting --suite korean`` from runs that are there, instead of from runs of its own.

    python benchmarks/korean_runs.py naive=RUN naive=RUN default=RUN default=RUN ...

METHOD=RUN names each run directory's method; the seed is the run's own, and every seed needs a run of ``naive``.
Scores have all the items that the runs scored. Costs are wall seconds by the runs' own account, not CPU seconds: compare
them only between runs that had the machine alike.
"""

import argparse
import tomllib
from pathlib import Path

from mgk_bench.korean import KoreanCell, read_cell
from mgk_bench.korean_table import as_text, figures_of
from mgk_core.tools.run_summary import look


def cell_of(method: str, run: Path) -> KoreanCell:
    """Read one run directory."""
    seen = look(run)
    if seen.status != "finished":
        raise SystemExit(f"{run}: {seen.status}; expected a run that has finished")
    settings = tomllib.loads((run / "run.toml").read_text(encoding="utf-8"))
    kept, model = (
        sum(p.stat().st_size for p in found)
        for found in (
            run.rglob("statistics.safetensors"),
            (run / "model").glob("*.safetensors"),
        )
    )
    return read_cell(
        method, int(settings["run"]["seed"]), seen.retention, seen.times, (kept, model)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="METHOD=RUN")
    named = [value.partition("=") for value in parser.parse_args().runs]
    cells = [cell_of(method, Path(run)) for method, _, run in named]
    print(as_text(cells))
    for cell, read in zip(cells, figures_of(cells), strict=True):
        names = ("gain_share", "own_share", "kept", "drift")
        said = {
            name: {k: round(v, 3) for k, v in getattr(read, name).items()}
            for name in names
        }
        print(cell.method, cell.seed, dict(cell.n), said)


if __name__ == "__main__":
    main()

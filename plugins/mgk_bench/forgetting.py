"""What ``mgk bench forgetting`` does with its options."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from mgk_core.contract.errors import InputError

if TYPE_CHECKING:
    from mgk_bench.folder import SuiteFolder
    from mgk_bench.methods import Method

DIGITS = ("permuted", "rotated", "split")
SMALL = (*DIGITS, "characters")
KOREAN = "korean"
OF_KOREAN = ("steps", "items")
OF_TEXTS = ("order", "train", "test", "tokens", "epochs", "generate", "results")


@frozen(kw_only=True)
class Options:
    """The command's options, by name."""

    suites: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int
    seed_from: int
    quick: bool
    workers: int | None
    base: str | None
    steps: int | None
    items: int | None
    order: str | None
    train: int | None
    test: int | None
    tokens: int | None
    epochs: float | None
    generate: int | None
    results: Path | None
    out: Path | None
    as_json: bool

    @property
    def chosen_seeds(self) -> range:
        """The seeds to run."""
        count = 2 if self.quick else self.seeds
        return range(self.seed_from, self.seed_from + count)

    def refuse(self, names: Sequence[str], what: str) -> None:
        """Refuse options that would have no effect.

        :raises InputError: one of them is given
        """
        given = [f"--{n}" for n in names if getattr(self, n) is not None]
        if given:
            raise InputError(f"{', '.join(given)}: only for {what}")


def run(options: Options) -> None:
    """Run the suites and show the table.

    :raises InputError: options that do not go together, an unknown suite or method
    """
    suites = options.suites or DIGITS
    alone = [name for name in suites if name not in SMALL]
    if alone and len(set(suites)) > 1:
        raise InputError(f"--suite {alone[0]} goes alone; run the others on their own")
    if not alone:
        options.refuse(("base", *OF_KOREAN), "--suite korean")
        options.refuse(OF_TEXTS, "suites of texts (superni, long, a folder)")
        _small(options, suites)
    elif alone == [KOREAN]:
        options.refuse(OF_TEXTS, "suites of texts (superni, long, a folder)")
        _korean(options)
    else:
        options.refuse(OF_KOREAN, "--suite korean")
        _texts(options, alone[0])


def _small(options: Options, suites: Sequence[str]) -> None:
    from mgk_bench.grid import records, run_grid, write
    from mgk_bench.methods import QUICK
    from mgk_bench.table import as_text

    methods = options.methods or (QUICK if options.quick else ())
    cells, found = run_grid(
        suites, methods, options.chosen_seeds, options.workers, tell=tell
    )
    shown = "\n".join(records(cells, suites)) if options.as_json else as_text(found)
    show(shown, [] if options.out is None else write(options.out, cells, found, suites))


def _korean(options: Options) -> None:
    from mgk_bench.korean import Cut, run_suite
    from mgk_bench.korean_table import as_text, records, write
    from mgk_bench.methods import QUICK_KOREAN

    methods = options.methods or (QUICK_KOREAN if options.quick else ())
    cut = (options.base, options.steps, options.items)
    workers = options.workers or 1
    cells = run_suite(methods, options.chosen_seeds, tell, Cut(*cut), workers)
    shown = "\n".join(records(cells, cut)) if options.as_json else as_text(cells)
    show(shown, [] if options.out is None else write(options.out, cells, cut))


def _texts(options: Options, suite: str) -> None:
    from mgk_bench.folder import find_suite
    from mgk_bench.methods import chosen_texts

    folder = find_suite(suite)
    order, _ = folder.order(options.order)
    methods = chosen_texts(
        options.methods or (("drift-guard",) if options.quick else ())
    )
    if options.results is not None:
        _run_texts(options, folder, order, methods, options.results)
        return
    with tempfile.TemporaryDirectory(prefix="mgk-bench-") as temporary:
        _run_texts(options, folder, order, methods, Path(temporary))


def _run_texts(
    options: Options,
    folder: SuiteFolder,
    order: str,
    methods: Sequence[Method],
    results: Path,
) -> None:
    from mgk_bench.output import write_all
    from mgk_bench.results import Job, jobs_of, phases_of, read_cell, run_jobs
    from mgk_bench.table import as_json_lines, as_text, lines
    from mgk_bench.text_cell import Settings
    from mgk_bench.texts import require_rouge

    given = ("base", "train", "test", "tokens", "epochs", "generate")
    changes: dict[str, Any] = {
        n: v for n in given if (v := getattr(options, n)) is not None
    }
    settings = Settings(**changes)
    if settings.generate:
        require_rouge()
    jobs = jobs_of(results, folder, order, settings, methods, options.chosen_seeds)
    total = sum(phases_of(job) for job in jobs if read_cell(job) is None)

    def done(job: Job) -> None:
        tell(f"{job.method.name}, seed {job.seed}: done")

    progress: Any = click.progressbar(length=total, label="phases", file=sys.stderr)
    with progress as bar:
        cells = run_jobs(jobs, options.workers or 1, bar.update, done)
    found = lines(cells)
    records = "\n".join(as_json_lines(cells, {"settings": settings, "order": order}))
    show(
        records if options.as_json else as_text(found),
        [] if options.out is None else write_all(options.out, found, records),
    )


def tell(text: str) -> None:
    """Print a line beside the result."""
    click.echo(text, err=True)


def show(table: str, written: Sequence[Path]) -> None:
    """Print the result, and the files that were written beside it."""
    click.echo(table)
    for path in written:
        tell(f"wrote {path}")

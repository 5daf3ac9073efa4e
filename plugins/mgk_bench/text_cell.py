"""One cell of a suite of texts: a language model taken through the tasks by one method."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import sys
from collections.abc import Callable, Sequence

import attrs
import torch
from attrs import define, field, frozen

import mgk
from mgk_bench.cell import Cell, Row
from mgk_bench.folder import SuiteFolder
from mgk_bench.loop import Clock, Union, phase_table
from mgk_bench.methods import Method
from mgk_bench.tasks import Recipe
from mgk_bench.texts import TextTask, encode, item_scores, rouge_l
from mgk_bench.untaught import Untaught, kl, load_untaught
from mgk_core.contract.bundle import PhaseData, Speaks, require_unpacks
from mgk_core.contract.errors import InputError

Advance = Callable[[], None]


@frozen
class Settings:
    """All that shapes a cell beside suite, order, method and seed.

    train, test: most rows of each task. tokens: most of an example. generate: test rows of each task
    whose answers are generated, 0 for none.
    """

    base: str = "gemma-3-270m-q4"
    train: int = 160
    test: int = 60
    tokens: int = 192
    generate: int = 20
    epochs: float = 1.0
    batch_size: int = 8
    lr: float = 5e-4
    rank: int = 8
    alpha: float = 16.0

    @property
    def recipe(self) -> Recipe:
        """How each task is trained."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            rank=self.rank,
            alpha=self.alpha,
        )


@define(eq=False)
class TextCell:
    """A cell at work. advance: called after each phase."""

    bundle: Speaks
    tasks: Sequence[TextTask]
    untaught: Untaught
    settings: Settings
    method: Method
    seed: int
    advance: Advance
    clock: Clock = field(factory=Clock)
    entries: list[object] = field(factory=list)
    generated: dict[str, float] = field(factory=dict)
    items: list[Row] = field(factory=list)

    def run(self) -> tuple[Row, ...]:
        """Return the rows of the matrix."""
        rows = [self._row()]
        phases = self._phases()
        table, last = phase_table(self.method, self.settings.recipe), None
        for number, (name, data) in enumerate(phases):
            with self.clock.running():
                last = mgk.run_phase(
                    self.bundle,
                    data,
                    table,
                    name=name,
                    after=last,
                    then=[table] * (len(phases) - number - 1),
                    seed=self.seed,
                )
            self.entries.append(attrs.asdict(last.entry))
            self.kept_bytes = last.kept_bytes
            rows.append(self._row())
            if number < len(self.tasks) and not self.method.joint:
                self._generate([self.tasks[number]])
            self.advance()
        return tuple(rows)

    kept_bytes: int = 0

    def _phases(self) -> list[tuple[str, PhaseData]]:
        found = [(task.name, PhaseData(train=task.train)) for task in self.tasks]
        if self.method.joint:
            trains = [task.train for task in self.tasks]
            union = Union(require_unpacks(self.bundle, "joint"), list(trains))
            found = [("joint", PhaseData(train=union))]
        name, first = found[0]
        found[0] = name, attrs.evolve(first, calibration=self.untaught.calibration)
        return found

    def _row(self) -> Row:
        self.items = [item_scores(self.bundle, task) for task in self.tasks]
        return tuple(math.fsum(row) / len(row) for row in self.items)

    def _generate(self, tasks: Sequence[TextTask]) -> None:
        if not self.settings.generate:
            return
        for task in tasks:
            if not task.classifies:
                score = rouge_l(self.bundle, task, self.settings.generate)
                self.generated[task.name] = score

    def answers(self) -> tuple[Row, ...]:
        """Return Rouge-L in the row after each task and in the last; nothing where nothing is generated."""
        taught = dict(self.generated)
        self._generate(self.tasks)
        last = tuple(
            self.generated[t.name] for t in self.tasks if t.name in self.generated
        )
        if len(last) < len(self.tasks):
            return ()
        first = taught if not self.method.joint else self.generated
        return tuple(first[task.name] for task in self.tasks), last


def run_text_cell(
    folder: SuiteFolder,
    order: str,
    settings: Settings,
    method: Method,
    seed: int,
    advance: Advance = lambda: None,
) -> Cell:
    """Run one cell on a fresh base.

    :raises InputError: a row is wrong, or some tasks have labels and others not
    """
    names = folder.order(order)[1]
    rows = folder.load(names, settings.train, settings.test)
    bundle = mgk.load_base("hf", device="cpu", id=settings.base)
    if not isinstance(bundle, Speaks):
        raise InputError(f"base {settings.base}: cannot be spoken to")
    tasks = [encode(bundle, task, settings.tokens) for task in rows]
    if len({task.classifies for task in tasks}) > 1:
        raise InputError(
            f"{folder.path}: some tasks have labels and others free text, whose scores have no common"
            " mean; make an order of each kind"
        )
    untaught = load_untaught(bundle)
    before, outputs = untaught.scores(bundle), untaught.outputs(bundle)
    cell = TextCell(bundle, tasks, untaught, settings, method, seed, advance)
    matrix = cell.run()
    after = untaught.scores(bundle)
    model_bytes = sum(p.nbytes for p in bundle.model.parameters())
    gc.collect()
    taught = [1] * len(tasks) if method.joint else range(1, len(tasks) + 1)
    return Cell(
        method=method.name,
        suite=folder.name,
        seed=seed,
        rows=matrix,
        taught=tuple(taught),
        seconds=cell.clock.seconds,
        kept_bytes=cell.kept_bytes,
        order=order,
        tasks=tuple(names),
        items=tuple(cell.items),
        generated=cell.answers(),
        base={name: (before[name], after[name]) for name in before},
        kl=kl(outputs, untaught.outputs(bundle)),
        memory=peak_memory(),
        model_bytes=model_bytes,
        needs_old_data=method.needs_old_data,
        ledger=_digest(cell.entries),
    )


def _digest(entries: Sequence[object]) -> str:
    """Return a digest of all phases' lines of the ledger."""
    text = json.dumps(entries, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def peak_memory() -> int | None:
    """Return the process's peak of resident memory in bytes; None where the system does not report it."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024

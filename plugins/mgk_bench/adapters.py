"""``mgk bench adapters``: kinds of adapters at the same number of trained parameters, each merged after its phase.

The suite is ``characters``, whose transformer has an attention and a perceptron in each block. Rank (or PEFT's own measure of
size) of each kind is chosen so that it trains as nearly as many parameters as LoRA of rank 8 on all linear layers. Where a
kind cannot come near, as with VeRA, the table shows its own number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from statistics import fmean
from typing import Any

import attrs
from attrs import field, frozen

import mgk
from mgk_bench.cell import Cell
from mgk_bench.figures import figures
from mgk_bench.methods import Method
from mgk_bench.table import drawn, json_lines, stderr
from mgk_bench.tasks import Suite
from mgk_core.contract.errors import InputError, nearest

ATTENTION = ("*.attention.q", "*.attention.k", "*.attention.v", "*.attention.o")
PERCEPTRON = ("*.up", "*.down")
ALL = (*ATTENTION, *PERCEPTRON)
SIZES = tuple(range(1, 33))


@frozen
class Kind:
    """One kind of adapter. table: without its size; size: where in the table that goes, as a path of keys.

    sizes: the values to try, smallest first; a single one where the kind has no such number.
    """

    name: str
    title: str
    table: Mapping[str, Any]
    size: tuple[str, ...] = ("rank",)
    sizes: Sequence[int] = SIZES
    lr: float | None = None

    def sized(self, number: int) -> dict[str, Any]:
        """Return the table with this size; alpha is twice a LoRA's rank throughout."""
        table = {**self.table}
        if len(self.size) == 1:
            return table | {self.size[0]: number, "alpha": 2.0 * number}
        outer, inner = self.size
        return table | {outer: {**table.get(outer, {}), inner: number}}


def _lora(name: str, title: str, targets: Sequence[str] = ALL, **options: Any) -> Kind:
    table = {"type": "lora", "targets": list(targets), **options}
    return Kind(name, title, table)


def _peft(name: str, title: str, size: str, sizes: Sequence[int], lr: float | None = None, **options: Any) -> Kind:  # fmt: skip
    table = {"type": f"peft:{name}", "targets": list(ALL), "options": options}
    return Kind(f"peft:{name}", title, table, ("options", size), sizes, lr)


KINDS = (
    _lora("lora", "LoRA on all linear layers of the blocks"),
    _lora("lora-attention", "LoRA on attention only", ATTENTION),
    _lora("lora-mlp", "LoRA on the perceptrons only", PERCEPTRON),
    _lora("rslora", "LoRA with scale alpha / sqrt(rank)", rslora=True),
    _lora("pissa", "LoRA from the largest singular directions", init="pissa"),
    _lora("milora", "LoRA from the least singular directions", init="milora"),
    Kind("dora", "weight-decomposed LoRA", {"type": "dora", "targets": list(ALL)}),
    _peft("OFT", "orthogonal blocks", "oft_block_size", (4, 8, 16, 32, 64), r=0),
    _peft("VERA", "scales of shared random factors", "r", (8, 64, 256), lr=3e-2),
)
REFERENCE = KINDS[0]


@frozen
class Sized:
    """A kind at the size that comes nearest to the budget."""

    kind: Kind
    size: int
    parameters: int

    @property
    def method(self) -> Method:
        """A row of plain merging with this adapter."""
        return Method(
            self.kind.name,
            self.kind.title,
            {"naive": {}},
            adapter=self.kind.sized(self.size),
            lr=self.kind.lr,
        )


def chosen(names: Sequence[str]) -> list[Kind]:
    """Return the kinds asked for, the reference with them; all that can run where none is named.

    :raises InputError: there is none of that name, or it needs PEFT and that is not installed
    """
    known = {kind.name: kind for kind in KINDS}
    for name in names:
        if name not in known:
            raise InputError(f"--adapter {name}: no such adapter{nearest(name, known)}")
        if name.startswith("peft:") and find_spec("peft") is None:
            raise InputError(f"--adapter {name}: needs PEFT; pip install 'mgk[peft]'")
    wanted = {REFERENCE.name, *(names or known)}
    there = find_spec("peft") is not None
    return [k for k in KINDS if k.name in wanted and (there or "peft:" not in k.name)]


def trained(suite: Suite, table: Mapping[str, Any]) -> int:
    """Return how many parameters an adapter trains on the suite's model."""
    options = dict(table)
    adapter = mgk.attach(suite.build(0).model, options.pop("type"), **options)
    return sum(p.numel() for p in adapter.parameters() if p.requires_grad)


def sized(suite: Suite, kind: Kind, budget: int) -> Sized:
    """Return the kind at the size whose number of trained parameters is nearest to the budget."""
    best: Sized | None = None
    for size in kind.sizes:
        found = Sized(kind, size, trained(suite, kind.sized(size)))
        if best is None or abs(found.parameters - budget) < abs(
            best.parameters - budget
        ):
            best = found
        if found.parameters > budget:
            break
    assert best is not None  # noqa: S101 - a kind has at least one size
    return best


def run(
    suite_of: Callable[[int], Suite],
    kinds: Sequence[Kind],
    seeds: Sequence[int],
    done: Callable[[str], None],
) -> tuple[list[Sized], list[Cell]]:
    """Run every kind with every seed, all kinds of one seed from the same base."""
    from mgk_bench.loop import base_of, run_cell

    first = suite_of(seeds[0])
    budget = trained(first, REFERENCE.sized(8))
    rows = [sized(first, kind, budget) for kind in kinds]
    cells = []
    for seed in seeds:
        suite = suite_of(seed)
        base = base_of(suite, seed)
        for row in rows:
            cells.append(run_cell(suite, row.method, seed, base))
            done(f"{row.kind.name}, seed {seed}")
    return rows, cells


@frozen
class Line:
    """One kind over all seeds. means and errors of AP, BWT and learning accuracy; against: AP minus that of the
    reference, paired by seed; cpu: relative to the reference."""

    row: Sized
    mean: Mapping[str, float]
    error: Mapping[str, float | None] = field(repr=False)
    against: tuple[float, float | None] | None
    cpu: float


def lines(rows: Sequence[Sized], cells: Sequence[Cell]) -> list[Line]:
    """Gather cells by kind."""
    return [_line(row, cells) for row in rows]


def _line(row: Sized, cells: Sequence[Cell]) -> Line:
    own = {c.seed: c for c in cells if c.method == row.kind.name}
    reference = {c.seed: c for c in cells if c.method == REFERENCE.name}
    read = {seed: figures(cell) for seed, cell in own.items()}
    columns = {
        "AP": [f.ap for f in read.values()],
        "BWT": [f.bwt or 0.0 for f in read.values()],
        "LA": [f.learning_accuracy for f in read.values()],
    }
    against = None
    if row.kind is not REFERENCE:
        pairs = [f.ap - figures(reference[seed]).ap for seed, f in read.items()]
        against = fmean(pairs), stderr(pairs)
    seconds = [sum(c.seconds for c in found.values()) for found in (own, reference)]
    return Line(
        row,
        {k: fmean(v) for k, v in columns.items()},
        {k: stderr(v) for k, v in columns.items()},
        against,
        seconds[0] / seconds[1],
    )


def as_text(found: Sequence[Line]) -> str:
    """Return a Markdown table."""
    titles = (
        "adapter",
        "size",
        "trained",
        "AP",
        "BWT",
        "LA",
        "AP − lora, paired",
        "CPU",
    )
    return drawn(titles, [list(_cells(line)) for line in found])


def _cells(line: Line) -> Iterator[str]:
    yield line.row.kind.name
    yield str(line.row.size)
    yield f"{line.row.parameters:,}"
    for key, form in (("AP", "{:.3f}"), ("BWT", "{:+.3f}"), ("LA", "{:.3f}")):
        yield _with_error(form, line.mean[key], line.error[key])
    yield "–" if line.against is None else _with_error("{:+.3f}", *line.against)
    yield f"{line.cpu:.2f}"


def _with_error(form: str, value: float, error: float | None) -> str:
    return form.format(value) + ("" if error is None else f" ± {error:.3f}")


def records(rows: Sequence[Sized], cells: Sequence[Cell]) -> list[str]:
    """Return one JSON line a cell, with its adapter's table and its number of trained parameters."""
    by_name = {row.kind.name: row for row in rows}
    tables = []
    for cell in cells:
        row = by_name[cell.method]
        more = {"adapter": row.method.adapter, "trained": row.parameters}
        tables.append(
            attrs.asdict(cell) | {"figures": attrs.asdict(figures(cell))} | more
        )
    return json_lines(tables, {"adapters": [attrs.asdict(r.method) for r in rows]})

"""A suite as a folder of tasks: ``TASK/{train,test}.jsonl[.gz]`` and the orders to teach them in.

A row has ``instruction``, ``input``, ``output`` and, for a classification, ``labels`` (a list, or the text of one).
``orders.json`` holds ``{"ORDER": ["TASK", …]}``; beside the folder it may hold the same below the suite's name.
``superni`` and ``long`` are found in ``$MGK_REALDATA/continual``.
"""

from __future__ import annotations

import ast
import gzip
import json
import os
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attrs import field, frozen

from mgk_core.contract.errors import InputError, nearest

NAMED = ("superni", "long")
VARIABLE = "MGK_REALDATA"


@frozen
class Row:
    """One example. labels: the answers to choose from; empty where the answer is free text."""

    instruction: str
    input: str
    output: str
    labels: tuple[str, ...] = ()

    @property
    def prompt(self) -> str:
        """The user's turn."""
        return "\n".join(part for part in (self.instruction, self.input) if part)


@frozen(eq=False)
class TaskRows:
    """One task's rows."""

    name: str
    train: tuple[Row, ...] = field(repr=False)
    test: tuple[Row, ...] = field(repr=False)


@frozen
class SuiteFolder:
    """Where a suite is. orders: name → tasks."""

    name: str
    path: Path
    orders: Mapping[str, tuple[str, ...]]

    def order(self, name: str | None) -> tuple[str, tuple[str, ...]]:
        """Return an order by name; None: the first.

        :raises InputError: there is none of that name
        """
        found = name or next(iter(self.orders))
        if found not in self.orders:
            raise InputError(
                f"--order {found}: {self.path} has no such order{nearest(found, self.orders)};"
                f" expected one of {', '.join(self.orders)}"
            )
        return found, self.orders[found]

    def load(self, tasks: Sequence[str], train: int, test: int) -> tuple[TaskRows, ...]:
        """Read tasks; at most so many rows of each file, drawn with a fixed seed."""
        return tuple(
            TaskRows(
                name,
                _rows(self.path / name, "train", train),
                _rows(self.path / name, "test", test),
            )
            for name in tasks
        )


def find_suite(given: str) -> SuiteFolder:
    """Return a suite by name or folder.

    :raises InputError: it is not there, or its orders name tasks that it does not have
    """
    path = Path(given)
    if given in NAMED:
        root = os.environ.get(VARIABLE)
        if not root:
            raise InputError(
                f"--suite {given}: set {VARIABLE} to the folder that contains continual/{given}"
            )
        path = Path(root) / "continual" / given
    if not path.is_dir():
        raise InputError(
            f"--suite {given}: {path} is not a folder; expected {', '.join(NAMED)} or a folder of tasks"
        )
    tasks = sorted(p.name for p in path.iterdir() if _file(p, "train") is not None)
    if not tasks:
        raise InputError(f"{path}: no tasks in it; expected TASK/train.jsonl or .gz")
    name = path.resolve().name
    return SuiteFolder(name, path, _orders(path, name, tasks))


def _orders(path: Path, name: str, tasks: Sequence[str]) -> dict[str, tuple[str, ...]]:
    for file in (path / "orders.json", path.parent / "orders.json"):
        if not file.is_file():
            continue
        try:
            table = json.loads(file.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{file}: is not JSON: {error}") from None
        nested = table.get(name)
        own = file.parent == path
        table = nested if isinstance(nested, dict) else table if own else None
        if table is None:
            continue
        orders = {order: tuple(names) for order, names in table.items()}
        for order, names in orders.items():
            if missing := [n for n in names if n not in tasks]:
                raise InputError(f"{file}: {order}: no folder for {', '.join(missing)}")
        return orders
    return {"alphabetical": tuple(tasks)}


def _file(task: Path, split: str) -> Path | None:
    for ending in ("jsonl", "jsonl.gz"):
        if (path := task / f"{split}.{ending}").is_file():
            return path
    return None


def _rows(task: Path, split: str, limit: int) -> tuple[Row, ...]:
    path = _file(task, split)
    if path is None:
        raise InputError(f"{task}: expected {split}.jsonl or {split}.jsonl.gz")
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rt", encoding="utf-8") as file:
            lines = [line for line in file if line.strip()]
    except (OSError, UnicodeError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from None
    if not lines:
        raise InputError(f"{path}: no rows in it")
    chosen: Sequence[int] = range(len(lines))
    if len(lines) > limit:
        chosen = sorted(random.Random(0).sample(range(len(lines)), limit))  # noqa: S311 - no secret
    return tuple(_row(lines[i], f"{path}:{i + 1}") for i in chosen)


def _row(line: str, place: str) -> Row:
    try:
        table: dict[str, Any] = json.loads(line)
        row = Row(
            str(table.get("instruction") or ""),
            str(table["input"]),
            str(table["output"]),
            _labels(table.get("labels")),
        )
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise InputError(
            f"{place}: expected an object with instruction, input and output"
            f" ({type(error).__name__}: {error})"
        ) from None
    if row.labels and row.output not in row.labels:
        raise InputError(f"{place}: output {row.output!r} is not among its labels")
    return row


def _labels(value: Any) -> tuple[str, ...]:
    if not value:
        return ()
    found = ast.literal_eval(value) if isinstance(value, str) else value
    return tuple(map(str, found))

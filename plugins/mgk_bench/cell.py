"""The result of one cell of a table: what one method did on one suite with one seed."""

from __future__ import annotations

from collections.abc import Mapping

from attrs import field, frozen

Row = tuple[float, ...]


@frozen
class Cell:
    """What one method did on one suite with one seed.

    rows: score of every task, on the untouched base and after each phase; higher is better. taught: the
    row after which each task was taught; 0 for a task that the base was made on. seconds: CPU time of
    training and merging. kept_bytes: of statistics, at the end. order, tasks: which tasks, in which order. items: the
    last row item by item, for paired errors. generated: the metric of generated answers, in the row after
    which each task was taught and in the last. base: what no task teaches → before, after. kl: KL divergence
    from the untouched base, nats per token. memory: peak of the process in bytes. ledger: digest of all
    phases' records; equal digests mean equal weights.
    """

    method: str
    suite: str
    seed: int
    rows: tuple[Row, ...]
    taught: tuple[int, ...]
    seconds: float
    kept_bytes: int
    order: str = ""
    tasks: tuple[str, ...] = ()
    items: tuple[Row, ...] = field(default=(), repr=False)
    generated: tuple[Row, ...] = ()
    base: Mapping[str, tuple[float, float]] = field(factory=dict)
    kl: float | None = None
    memory: int | None = None
    model_bytes: int = 0
    needs_old_data: bool = False
    ledger: str = ""

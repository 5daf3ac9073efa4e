"""The processes of a run: one, or many that run the same program and share out what is costly.

With many, every rank runs the whole program and calls every hook in the same order; what a plugin gets
is whole. So a plugin that never looks at ``ctx.world`` is right, and only not faster.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, frozen

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")


@define(eq=False)
class World:
    """The processes of a run; this class is the world of a single one, and imports no torch.distributed.

    rank: number of this process, from 0. size: how many there are. local: its number on this machine.
    Every method with a meeting (all but the properties) has to be called by all ranks, in the same
    order. Values that travel are plain: None, bool, int, float, str, lists, and dicts with str keys;
    a tuple arrives as a list. Only `sum` carries tensors.
    """

    rank: int = 0
    size: int = 1
    local: int = 0

    @property
    def leader(self) -> bool:
        """Whether this is the process that writes files and talks to the user: rank 0."""
        return self.rank == 0

    def lead(self, work: Callable[[], T]) -> T:
        """Let the leader alone do ``work``, once all have arrived; return its result, or raise its error, on every rank."""
        return work()

    def together(self, work: Callable[[], T]) -> T:
        """Let each rank do ``work``; where one fails, all raise. What a rank did is its own to undo."""
        return work()

    def same(self, value: T) -> T:
        """Return the leader's value: for decisions that come from files or clocks."""
        return value

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - a vote has one ballot
        """Return whether the flag is true on any rank."""
        return flag

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, by rank."""
        return [value]

    def agree(self, what: str, value: str) -> None:
        """Check that a digest is the same on every rank.

        :raises EnvironmentFault: names the ranks that differ from the leader
        """

    def leave(self, error: BaseException) -> None:
        """Give the other ranks the error that ends this one, and meet them no more."""

    def deal(self, count: int, work: Callable[[int], T]) -> list[T]:
        """Return ``work(0)`` to ``work(count - 1)``, each computed by one rank and known to all."""
        return [work(i) for i in range(count)]

    def sum(self, count: int, work: Callable[[int], Sequence[Tensor]]) -> list[Tensor]:
        """Return the elementwise sum of ``work(0)`` to ``work(count - 1)``, added in this order.

        The order makes the bits independent of the number of ranks. Each ``work(i)`` is computed by
        one rank, and every one returns tensors of the same shapes and dtypes, on one device.
        """
        total = [t.clone() for t in work(0)]
        for i in range(1, count):
            for part, added in zip(total, work(i), strict=True):
                part.add_(added)
        return total


ALONE = World()


@frozen
class Place:
    """Where a launcher such as torchrun has put this process."""

    rank: int = 0
    size: int = 1
    local: int = 0


def place(environ: Mapping[str, str] | None = None) -> Place:
    """Read torchrun's variables RANK, WORLD_SIZE and LOCAL_RANK; one process where they are not set."""
    found: Mapping[str, Any] = os.environ if environ is None else environ
    rank, size = found.get("RANK", ""), found.get("WORLD_SIZE", "")
    if not (rank.isdecimal() and size.isdecimal()):
        return Place()
    local = found.get("LOCAL_RANK", "0")
    return Place(int(rank), int(size), int(local) if local.isdecimal() else 0)


__all__ = ["ALONE", "Place", "World", "place"]

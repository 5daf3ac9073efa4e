"""Joining the processes of a run, where a launcher such as torchrun has started several."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mgk_core.contract.world import World, place


@contextmanager
def joined() -> Iterator[World]:
    """Give the world of this process; alone where no launcher has started others.

    :raises EnvironmentFault: the others cannot be reached
    """
    here = place()
    if here.size == 1:
        yield World()
        return
    from mgk_core.run.ranks import join  # torch.distributed, for many processes only

    world = join(here)
    try:
        yield world
    except BaseException as error:
        world.leave(error)
        raise
    world.close()

"""What each process does, holds and receives where several work on a run: arithmetic, checked by counting in a test."""

from __future__ import annotations

from attrs import frozen

GRADIENT = 4  # bytes of one number of a gradient: adapters are trained in fp32


@frozen
class Share:
    """One rank's part of a phase's step.

    micro_batches: of a whole step. turns: how many of them a rank computes. repeated: how many
    turns of all ranks repeat a micro-batch, because there are fewer than ranks or they do not divide.
    buffers: bytes beside the gradients while they are summed. received: bytes from other ranks, a step.
    """

    ranks: int
    micro_batches: int
    turns: int
    repeated: int
    buffers: int = 0
    received: int = 0


def share_of(ranks: int, batch: int, micro: int, numbers: int) -> Share:
    """Return a rank's share of a step; a single micro-batch is computed by all ranks alike.

    batch, micro: examples. numbers: of the adapter's trainable parameters.
    """
    count = -(-batch // micro)
    if ranks == 1:
        return Share(1, count, count, 0)
    if count == 1:
        return Share(ranks, 1, 1, ranks - 1)
    turns = -(-count // ranks)
    part = -(-numbers // ranks) * GRADIENT  # the slice that one rank adds up
    # A round exchanges slices of all gradients; at the end every rank gets the others' sums.
    received = (turns + 1) * (ranks - 1) * part
    # At most: the own slice's sum, all sums in one piece, and the same as single tensors.
    buffers = part + 2 * ranks * part
    return Share(ranks, count, turns, turns * ranks - count, buffers, received)

"""The world of many processes, over torch.distributed: gloo on CPUs, NCCL between CUDA devices.

Decisions and values travel over gloo, gradients over the backend of their device. Each meeting carries
the name of its place, so that ranks which have come apart are named rather than left waiting.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from attrs import astuple, define, field, frozen
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

from mgk_core.contract.errors import (
    EnvironmentFault,
    GateRefused,
    InputError,
    Interrupted,
    MergeError,
    MgkError,
    StoreError,
)
from mgk_core.contract.world import Place, World
from mgk_core.model.device import is_out_of_memory

T = TypeVar("T")

PATIENCE = timedelta(hours=2)
"""How long a rank waits for the others, for example while the leader writes a large model."""
FAREWELL = 5.0
"""Seconds in which a rank that has vanished is looked for before it is reported."""

_KINDS: dict[str, type[MgkError]] = {
    kind.__name__: kind
    for kind in (
        GateRefused, Interrupted, MergeError, StoreError, EnvironmentFault, InputError, MgkError,
    )
}  # fmt: skip


class PeerFailed(EnvironmentFault):
    """Another rank failed or vanished. rank: which one, the lowest where there are several."""

    def __init__(self, message: str, rank: int) -> None:
        self.rank = rank
        super().__init__(message)


@frozen
class Failure:
    """What a rank raised, as it travels to the others. kind: a class of mgk's errors, or MemoryError."""

    rank: int
    kind: str
    text: str

    @classmethod
    def of(cls, rank: int, error: BaseException) -> Failure:
        """Describe an error."""
        if is_out_of_memory(error):
            return cls(rank, "MemoryError", str(error))
        if isinstance(error, KeyboardInterrupt):
            return cls(rank, "Interrupted", "stopped at once")
        known = (c.__name__ for c in type(error).__mro__ if c.__name__ in _KINDS)
        kind = next(known, "")
        return cls(
            rank, kind, str(error) if kind else f"{type(error).__name__}: {error}"
        )

    def error(self) -> BaseException:
        """Return what the other ranks raise."""
        if self.kind == "MemoryError":
            return MemoryError(self.text)
        kind = _KINDS.get(self.kind)
        if kind is None:
            return PeerFailed(f"rank {self.rank} failed: {self.text}", self.rank)
        return kind(self.text)


@frozen
class Peer:
    """Where a rank runs."""

    host: str
    pid: int

    def alive(self) -> bool:
        """Return whether the process is there; one on another machine is taken to be."""
        if self.host != socket.gethostname():
            return True
        try:
            os.kill(self.pid, 0)
        except OSError:
            return False
        return True


@define(eq=False)
class Ranks(World):
    """The world of a process that a launcher started as one of several.

    control: the group in which values are exchanged. store: the launcher's key-value store, in which a
    rank that fails leaves its error. broken: whether this rank has left, or lost, the others.
    """

    control: Any = None
    store: Any = None
    peers: list[Peer] = field(factory=list)
    broken: bool = False
    _leading: bool = False

    def lead(self, work: Callable[[], T]) -> T:
        """See `World`. Inside the leader's work all further work is its own too."""
        if self._leading or (self.broken and self.leader):
            return work()
        self._meet(
            "lead"
        )  # from here on no other rank reads what is about to be written
        result: T | None = None
        failed: BaseException | None = None
        if self.leader:
            self._leading = True
            try:
                result = work()
            except Exception as error:  # noqa: BLE001 - it is raised below, when the others know of it
                failed = error
            finally:
                self._leading = False
        return cast("T", self._resolved("led", result, failed)[0])

    def together(self, work: Callable[[], T]) -> T:
        """See `World`."""
        result: T | None = None
        failed: BaseException | None = None
        try:
            result = work()
        except Exception as error:  # noqa: BLE001 - it is raised below, when the others know of it
            failed = error
        self._resolved("together", None, failed)
        return result  # type: ignore[return-value]

    def same(self, value: T) -> T:
        """See `World`."""
        return cast("T", self._meet("same", value if self.leader else None)[0])

    def any(self, flag: bool) -> bool:  # noqa: FBT001 - see `World`
        """See `World`."""
        return any(self._meet("any", flag))

    def gather(self, value: T) -> list[T]:
        """See `World`."""
        return self._meet("gather", value)

    def agree(self, what: str, value: str) -> None:
        """See `World`."""
        found = self._meet(f"agree on {what}", value)
        if wrong := [rank for rank, other in enumerate(found) if other != found[0]]:
            raise EnvironmentFault(
                f"{what}: rank {', '.join(map(str, wrong))} of {self.size} has other bits than rank 0; the ranks"
                " need the same files, libraries, devices and number of threads (run.threads)"
            )

    def deal(self, count: int, work: Callable[[int], T]) -> list[T]:
        """See `World`. A rank without a turn repeats the last one, so that all make equally many."""

        def own() -> dict[int, T]:
            found: dict[int, T] = {}
            for first in range(0, count, self.size):
                index = min(first + self.rank, count - 1)
                found[index] = work(index)
            return found

        found: dict[int, T] = {}
        for part in reversed(self.gather(list(self.together(own).items()))):
            found |= dict(part)
        return [found[i] for i in range(count)]

    def sum(self, count: int, work: Callable[[int], Sequence[Tensor]]) -> list[Tensor]:
        """See `World`. Each rank adds up one slice of the numbers, for all the micro-batches of a round."""
        fold: _Fold | None = None
        for first in range(0, count, self.size):
            index = min(first + self.rank, count - 1)
            parts = self.together(lambda i=index: work(i))  # type: ignore[misc]
            fold = fold or _Fold.of(parts, self.size)
            with self._calling():
                fold.add(parts, min(self.size, count - first))
        assert fold is not None  # noqa: S101 - nothing sums zero things
        with self._calling():
            return fold.whole()

    def leave(self, error: BaseException) -> None:
        """Give the others this rank's error, and meet them no more; cleaning up is then its own work."""
        if self.control is None:
            return
        self.broken = True
        failure = Failure.of(self.rank, error)
        with suppress(RuntimeError):  # the store may be gone with its own process
            self.store.set(
                _words(self.rank), json.dumps([failure.kind, failure.text]).encode()
            )
        self.close()

    def close(self) -> None:
        """End the connections; whoever waits for this rank finds out at once."""
        self.control = None
        if dist.is_initialized():
            with suppress(RuntimeError):
                dist.destroy_process_group()

    def _resolved(
        self, tag: str, result: Any, failed: BaseException | None
    ) -> list[Any]:
        """Exchange results or errors; raise where there is an error, each rank its own before another's."""
        failure = None if failed is None else astuple(Failure.of(self.rank, failed))
        found = self._meet(tag, (result, failure))
        if failed is not None:
            raise failed
        first = next((f for _, f in found if f is not None), None)
        if first is not None:
            raise Failure(*first).error()
        return [r for r, _ in found]

    def _meet(self, tag: str, value: Any = None) -> list[Any]:
        """Exchange values with all ranks, which must have come to the same place."""
        if self.broken:
            raise PeerFailed(
                "the other processes of this run have been left", self.rank
            )
        with self._calling():
            found = [json.loads(d) for d in self._exchanged(_message(tag, value))]
        if any(t != tag for t, _ in found):
            self.broken = True
            places = "; ".join(f"rank {r} at {t!r}" for r, (t, _) in enumerate(found))
            raise EnvironmentFault(
                f"the processes of this run have come apart: {places}; a plugin that decides by clock, files or"
                " unseeded random numbers has to ask ctx.world.same"
            )
        return [v for _, v in found]

    def _exchanged(self, data: bytes) -> list[bytes]:
        """Return every rank's bytes: lengths first, then the content where there is more than a little."""
        own = torch.zeros(_SHORT, dtype=torch.uint8)
        _put(own, len(data).to_bytes(_HEAD, "little") + data[: _SHORT - _HEAD])
        heads = [torch.empty_like(own) for _ in range(self.size)]
        dist.all_gather(heads, own, group=self.control)
        texts = [bytes(h.numpy()) for h in heads]
        lengths = [int.from_bytes(t[:_HEAD], "little") for t in texts]
        longest = max(lengths)
        if longest <= _SHORT - _HEAD:
            return [t[_HEAD : _HEAD + n] for t, n in zip(texts, lengths, strict=True)]
        padded = torch.zeros(longest, dtype=torch.uint8)
        _put(padded, data)
        found = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(found, padded, group=self.control)
        return [bytes(f.numpy())[:n] for f, n in zip(found, lengths, strict=True)]

    @contextmanager
    def _calling(self) -> Iterator[None]:
        """Turn what torch.distributed raises where a rank is gone into an error that names it."""
        try:
            yield
        except RuntimeError as error:
            self.broken = True
            raise self._lost(error) from error

    def _lost(self, error: RuntimeError) -> BaseException:
        """Return what became of the others: the error that one left, or who has vanished."""
        until = time.monotonic() + FAREWELL
        others = [r for r in range(self.size) if r != self.rank]
        while time.monotonic() < until:
            for rank in others:
                if (failure := self._last_words(rank)) is not None:
                    return failure.error()
            gone = [
                r for r in others if r < len(self.peers) and not self.peers[r].alive()
            ]
            if gone:
                names = ", ".join(f"{r} (process {self.peers[r].pid})" for r in gone)
                return PeerFailed(
                    f"rank {names} of {self.size} has gone: it was killed, or its machine failed; continue from the last"
                    " checkpoint with 'mgk resume', on any number of processes",
                    gone[0],
                )
            time.sleep(0.05)
        far = [
            r for r in others if self.peers[r].host != socket.gethostname()
        ] or others
        names = ", ".join(map(str, far))
        return PeerFailed(
            f"lost the connection to rank {names} of {self.size}: {str(error).splitlines()[0]}; continue from the last"
            " checkpoint with 'mgk resume', on any number of processes",
            far[0],
        )

    def _last_words(self, rank: int) -> Failure | None:
        key = _words(rank)
        with suppress(RuntimeError):
            if self.store.check([key]):
                return Failure(rank, *json.loads(self.store.get(key)))
        return None


_SHORT, _HEAD = 256, 8  # bytes of a meeting's only message, and of the length in it


def _message(tag: str, value: Any) -> bytes:
    """Return what a rank sends: JSON, so that nothing which arrives can run code.

    :raises TypeError: the value is not plain
    """
    try:
        return json.dumps([tag, value]).encode()
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"{tag}: only plain values travel between ranks (None, bool, int, float, str, lists, and dicts with"
            f" str keys), got {type(value).__name__}: {error}; convert what your work returns"
        ) from error


def _put(tensor: Tensor, data: bytes) -> None:
    tensor[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _words(rank: int) -> str:
    return f"mgk/failed/{rank}"


@define(eq=False)
class _Fold:
    """Sums in order: per dtype each rank owns one slice of the numbers and adds everyone's, one after the other.

    shapes: of the tensors. places: dtype → which tensors have it. sums: dtype → this rank's slice so far.
    """

    size: int
    shapes: list[torch.Size]
    places: dict[torch.dtype, list[int]]
    sums: dict[torch.dtype, Tensor] = field(factory=dict)

    @classmethod
    def of(cls, parts: Sequence[Tensor], size: int) -> _Fold:
        """Begin a sum of tensors like these."""
        places: dict[torch.dtype, list[int]] = {}
        for i, part in enumerate(parts):
            places.setdefault(part.dtype, []).append(i)
        return cls(size, [p.shape for p in parts], places)

    def add(self, parts: Sequence[Tensor], real: int) -> None:
        """Add one round: the parts of ranks 0 to ``real - 1``, in this order."""
        for dtype, places in self.places.items():
            flat = torch.cat([parts[i].detach().reshape(-1) for i in places])
            slices = self._padded(flat).view(self.size, -1)
            found = torch.empty_like(slices)
            dist.all_to_all_single(
                found, slices
            )  # row r: rank r's numbers of this rank's slice
            for row in found[:real]:
                if dtype in self.sums:
                    self.sums[dtype] += row
                else:
                    self.sums[dtype] = row.clone()

    def whole(self) -> list[Tensor]:
        """Return the sums, put together from all slices."""
        result: dict[int, Tensor] = {}
        for dtype, places in self.places.items():
            own = self.sums[dtype]
            whole = own.new_empty(self.size * own.numel())
            dist.all_gather(list(whole.view(self.size, -1).unbind()), own)
            start = 0
            for i in places:
                count = self.shapes[i].numel()
                # Not views: a step takes views that fill one buffer for a bundle's own.
                result[i] = whole[start : start + count].view(self.shapes[i]).clone()
                start += count
        return [result[i] for i in range(len(self.shapes))]

    def _padded(self, flat: Tensor) -> Tensor:
        missing = -flat.numel() % self.size
        return torch.cat([flat, flat.new_zeros(missing)]) if missing else flat


_JOINED: list[Place] = []


def join(here: Place) -> Ranks:
    """Join the other processes.

    :raises EnvironmentFault: they cannot be reached
    """
    rank, size, local = here.rank, here.size, here.local
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    _JOINED.append(here)
    try:
        found, _, _ = next(iter(rendezvous("env://")))
        # A process may do several runs, and the store keeps the addresses of earlier ones.
        store = PrefixStore(f"mgk/{len(_JOINED)}", found)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=size, timeout=PATIENCE
        )
        control = dist.new_group(backend="gloo", timeout=PATIENCE)
    except (RuntimeError, ValueError) as error:
        raise EnvironmentFault(
            f"rank {rank} of {size} cannot reach the other processes of this run: {str(error).splitlines()[0]};"
            " start it with 'mgk run --nproc N' or with torchrun"
        ) from error
    world = Ranks(rank, size, local, control=control, store=store)
    own: list[Any] = [socket.gethostname(), os.getpid()]
    world.peers = [Peer(*found) for found in world.gather(own)]
    return world


__all__ = ["PeerFailed", "Ranks", "join"]

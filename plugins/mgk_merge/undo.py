"""The way back: what each tensor contained before it was overwritten, in memory or on disk.

A block is kept before it is overwritten and counted as kept only once it is whole, so that
restoring is right at whatever instant the merge stopped.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch
from attrs import define, field
from torch import Tensor

from mgk_core.contract.adapter import Adapter, ModelState
from mgk_core.contract.errors import MergeError, StoreError

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
}


class Keeper(Protocol):
    """Where old contents are kept."""

    def keep(self, name: str, live: Tensor, start: int, stop: int) -> Tensor | None:
        """Keep rows ``start … stop`` of ``live``, which is about to be overwritten there.

        :return: the kept rows, contiguous, to be read only; None where they are not in memory
        """

    def put_back(self) -> None:
        """Write everything kept back to where it came from. May be repeated."""

    def forget(self) -> None:
        """Give the memory or the file back."""


@define(eq=False)
class MemoryKeeper:
    """Old contents in second tensors, made at once: memory that is missing is missed before the first change."""

    tensors: Mapping[str, Tensor]
    _kept: dict[str, Tensor] = field(init=False)
    _rows: dict[str, int] = field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self._kept = {
            n: torch.empty_like(t, memory_format=torch.contiguous_format)
            for n, t in self.tensors.items()
        }

    def keep(self, name: str, live: Tensor, start: int, stop: int) -> Tensor:
        """See `Keeper`."""
        kept = self._kept[name][start:stop].copy_(live[start:stop])
        self._rows[name] = stop
        return kept

    def put_back(self) -> None:
        """See `Keeper`."""
        for name, rows in self._rows.items():
            self.tensors[name][:rows].copy_(self._kept[name][:rows])

    def forget(self) -> None:
        """See `Keeper`."""
        self._rows.clear()
        self._kept.clear()


@define(eq=False)
class DiskKeeper:
    """Old contents in one safetensors file, written block by block; needs no memory of its own."""

    folder: Path
    tensors: Mapping[str, Tensor]
    _offsets: dict[str, int] = field(factory=dict)
    _rows: dict[str, int] = field(factory=dict)
    _descriptor: int = -1

    def __attrs_post_init__(self) -> None:
        header: dict[str, object] = {}
        end = 0
        for name, tensor in self.tensors.items():
            size = tensor.numel() * tensor.element_size()
            self._offsets[name] = end
            header[name] = {
                "dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [end, end + size],
            }  # fmt: skip
            end += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._check_space(end)
            self._descriptor = os.open(
                self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600
            )
            _write(self._descriptor, len(text).to_bytes(8, "little") + text, 0)
        except (OSError, StoreError) as error:
            self.forget()
            raise _refused(self.path, error) from error
        self._offsets = {name: at + 8 + len(text) for name, at in self._offsets.items()}

    @property
    def path(self) -> Path:
        """The spool file."""
        return self.folder / "undo.safetensors"

    def keep(self, name: str, live: Tensor, start: int, stop: int) -> None:
        """See `Keeper`."""
        block = live[start:stop].contiguous().cpu()
        try:
            _write(
                self._descriptor,
                block.view(torch.uint8).numpy(),
                self._offsets[name] + _bytes(live, start),
            )
        except OSError as error:
            raise _refused(self.path, error) from error
        self._rows[name] = stop

    def put_back(self) -> None:
        """See `Keeper`."""
        for name, rows in self._rows.items():
            live = self.tensors[name]
            step = max(1, (1 << 22) // max(1, _bytes(live, 1)))
            for start in range(0, rows, step):
                stop = min(rows, start + step)
                block = torch.empty_like(
                    live[start:stop],
                    device="cpu",
                    memory_format=torch.contiguous_format,
                )
                _read(
                    self._descriptor,
                    block.view(torch.uint8).numpy(),
                    self._offsets[name] + _bytes(live, start),
                )
                live[start:stop].copy_(block)

    def forget(self) -> None:
        """See `Keeper`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
        self.path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # the folder may hold other files
            self.folder.rmdir()

    def _check_space(self, needed: int) -> None:
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            raise StoreError(f"{free / 1e9:.2f} GB free, {needed / 1e9:.2f} GB needed")


@define(eq=False)
class ExactUndo:
    """Everything that one merge changed: weights, residuals, and who is merged."""

    keeper: Keeper
    state: ModelState
    adapter: Adapter
    _residuals: dict[str, Tensor] = field(init=False)
    _spent: bool = False

    def __attrs_post_init__(self) -> None:
        self._residuals = dict(self.state.residuals)

    def restore(self) -> None:
        """Put every old tensor and residual back, bit for bit; then forget them. Once."""
        if self._spent:
            raise MergeError(
                f"the merge of {self.adapter.name!r} was undone or released already"
            )
        self.put_back()
        self.release()

    def put_back(self) -> None:
        """Restore without forgetting; may be repeated."""
        with torch.no_grad():
            self.keeper.put_back()
        self.state.residuals.clear()
        self.state.residuals.update(self._residuals)
        self.state.merged[:] = [a for a in self.state.merged if a is not self.adapter]

    def release(self) -> None:
        """Forget the old tensors; the merge is final."""
        self._spent = True
        self._residuals = {}
        self.keeper.forget()


def _refused(path: Path, error: Exception) -> StoreError:
    return StoreError(
        f"undo = 'disk': {path}: {error}; free space there, or use undo = 'memory'"
    )


def _bytes(tensor: Tensor, rows: int) -> int:
    return rows * (tensor.numel() // max(1, tensor.shape[0])) * tensor.element_size()


def _write(descriptor: int, data: object, offset: int) -> None:
    view = memoryview(data).cast("B")  # type: ignore[arg-type]
    while view:
        done = os.pwrite(descriptor, view, offset)
        view, offset = view[done:], offset + done


def _read(descriptor: int, data: object, offset: int) -> None:
    view = memoryview(data).cast("B")  # type: ignore[arg-type]
    while view:
        done = os.preadv(descriptor, [view], offset)
        if done == 0:
            raise StoreError(
                "the spooled old weights are cut short; load the base again"
            )
        view, offset = view[done:], offset + done

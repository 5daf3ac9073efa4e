"""Device, threads, memory: read in one place."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import resource
import sys
import time
from pathlib import Path

import psutil
import torch

from mgk_core.contract.errors import EnvironmentFault, InputError
from mgk_core.contract.world import World


def pick_device(wanted: str) -> torch.device:
    """Return the device for ``auto``, ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    :raises EnvironmentFault: the device is not there; names what ``auto`` would take
    """
    if wanted == "auto":
        return torch.device(_best())
    try:
        device = torch.device(wanted)
    except RuntimeError:
        raise InputError(
            f"device {wanted!r}: expected auto, cpu, cuda, cuda:N or mps"
        ) from None
    if device.type == "cuda":
        _need_cuda(device, wanted)
    elif device.type == "mps":
        if not torch.backends.mps.is_available():
            raise EnvironmentFault(
                f"device 'mps': this machine has none; 'auto' would take {_best()!r}"
            )
    elif device.type != "cpu":
        raise InputError(f"device {wanted!r}: expected auto, cpu, cuda, cuda:N or mps")
    return device


def of_rank(device: torch.device, world: World) -> torch.device:
    """Return a rank's own device: CUDA devices are given out by the rank's number on its machine.

    :raises InputError: all ranks would use one device
    :raises EnvironmentFault: there are fewer devices than ranks on this machine
    """
    if world.size == 1 or device.type == "cpu":
        return device
    if device.type != "cuda" or device.index is not None:
        raise InputError(
            f"device {str(device)!r}: the {world.size} processes of this run need a device each; expected run.device"
            " 'cuda' or 'cpu'"
        )
    if world.local >= torch.cuda.device_count():
        raise EnvironmentFault(
            f"rank {world.rank} of {world.size} is number {world.local} (from 0) on its machine, which has"
            f" {torch.cuda.device_count()} CUDA devices; start as many processes there as it has devices"
        )
    own = torch.device("cuda", world.local)
    torch.cuda.set_device(own)
    return own


def _need_cuda(device: torch.device, wanted: str) -> None:
    if not torch.cuda.is_available():
        reason = (
            "this torch is built without CUDA"
            if torch.version.cuda is None
            else "no CUDA device is visible"
        )
        raise EnvironmentFault(
            f"device {wanted!r}: {reason}; 'auto' would take {_best()!r}"
        )
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise EnvironmentFault(
            f"device {wanted!r}: there are {torch.cuda.device_count()} CUDA devices, counted from 0"
        )


def _best() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def set_up(device: torch.device, *, threads: int, deterministic: bool) -> None:
    """Set threads and determinism for this process."""
    torch.set_num_threads(threads or _threads())
    if device.type == "cuda":
        os.environ.setdefault(
            "CUBLAS_WORKSPACE_CONFIG", ":4096:8"
        )  # what cuBLAS needs to be deterministic
        torch.cuda.reset_peak_memory_stats(device)
    _use_deterministic(deterministic)


def asked_threads() -> int:
    """Return OMP_NUM_THREADS; 0 where it is not set, or is not a whole number."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() else 0


def _threads() -> int:
    """Return the number of threads that is asked for from outside, or that of the CPUs that the process may use."""
    if asked := asked_threads():
        return asked
    return (
        len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1
    )


def _use_deterministic(wanted: bool) -> None:  # noqa: FBT001 - torch's own signature
    """As `torch.use_deterministic_algorithms`, which also imports the whole compiler: seconds at every start."""
    # Filling every new tensor with NaN helps to find uses of uninitialised memory and costs time at each.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    if "torch._inductor" in sys.modules:
        torch.use_deterministic_algorithms(wanted)
    else:
        torch._C._set_deterministic_algorithms(wanted)  # noqa: SLF001 - what the public function calls


_MAXRSS = 1 if sys.platform == "darwin" else 1024  # bytes in a unit of ru_maxrss
_seen: tuple[float, int] = (-math.inf, 0)


def _resident() -> int:
    """Return the process's RSS in bytes, at most a second old: the look-up takes as long as a small step."""
    global _seen  # noqa: PLW0603 - one process, one figure
    now = time.monotonic()
    if now - _seen[0] > 1.0:
        _seen = (now, psutil.Process().memory_info().rss)
    return _seen[1]


def resident() -> int:
    """Return the process's RSS in bytes, now, without what was freed and not yet given back."""
    gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(
            AttributeError, OSError
        ):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def memory(device: torch.device) -> dict[str, int]:
    """Return bytes: peak and present RSS of the process; allocated, reserved and peak on CUDA."""
    figures = {
        "rss": _resident(),
        "rss_peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS,
    }
    if device.type == "cuda":
        figures["cuda_allocated"] = torch.cuda.memory_allocated(device)
        figures["cuda_reserved"] = torch.cuda.memory_reserved(device)
        figures["cuda_peak"] = torch.cuda.max_memory_allocated(device)
    return figures


def process_peak() -> int:
    """Return the most bytes of RSS since the process began, or since `reset_process_peak`.

    On Linux not ``ru_maxrss``, which a process inherits from the one that started it.
    """
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * int(
            next(line.split()[1] for line in lines if line.startswith("VmHWM:"))
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _MAXRSS


def reset_process_peak() -> None:
    """Begin a new peak of the process's RSS, where the system allows it (Linux)."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def reset_peak(device: torch.device) -> None:
    """Begin a new peak on CUDA; the process's RSS peak cannot be reset."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error is a lack of memory, on any device: torch's CPU allocator raises a plain RuntimeError."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(
        sign in str(error) for sign in _SIGNS
    )


__all__ = ["is_out_of_memory"]

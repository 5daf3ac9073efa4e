"""Reading files that may be missing, damaged or huge: a `StoreError` names what is wrong with one."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from mgk_core.contract.errors import StoreError

MAX_BYTES = 256 * 2**20  # of a file that is read whole: JSON, the journal
MAX_HEADER = 64 * 2**20  # of a safetensors file; 2 million tensors fit

FIXES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some space or raise the quota",
    errno.EFBIG: "raise the limit on file size (ulimit -f)",
    errno.EROFS: "choose a directory that can be written",
    errno.EACCES: "choose a directory that you may write to",
    errno.EPERM: "choose a directory that you may write to",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs' files",
    errno.EIO: "check the disk",
}
"""What a user can do about a system error."""


def reason(error: OSError, otherwise: str = "fix that") -> str:
    """Return the system's reason for an error, and what to do about it."""
    return f"{error.strerror or error}; {FIXES.get(error.errno or 0, otherwise)}"


def read_bytes(path: Path, limit: int = MAX_BYTES) -> bytes:
    """Read a small file whole; a `StoreError` names a missing, huge or foreign one before it is read."""
    try:
        if not path.is_file():
            raise StoreError(
                f"{path}: cannot be read: {'not a file' if os.path.lexists(path) else 'no such file'}"
            )
        if (size := path.stat().st_size) > limit:
            raise StoreError(
                f"{path}: is damaged: it has {size:,} bytes, expected at most {limit:,}"
            )
        return path.read_bytes()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {reason(error)}") from None


def read_json(path: Path) -> Any:
    """Read JSON; a `StoreError` names a missing or damaged file."""
    data = read_bytes(path)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise StoreError(
            f"{path}: is damaged: {error}; restore the file from a copy"
        ) from None


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read safetensors; a `StoreError` names a missing or damaged file."""
    check_header(path)
    try:
        return load_file(path)
    except (OSError, SafetensorError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read as safetensors: {error}") from None


def read_metadata(path: Path) -> dict[str, str]:
    """Read a safetensors file's metadata without its tensors."""
    check_header(path)
    try:
        with safe_open(path, "pt") as file:
            return dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: cannot be read as safetensors: {error}") from None


def check_header(path: Path) -> None:
    """Check a safetensors file's header length against the file's size, before anything is allocated.

    :raises StoreError: the file is cut short, damaged or of another kind
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            start = file.read(8)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read as safetensors: {reason(error)}"
        ) from None
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, MAX_HEADER):
        raise StoreError(
            f"{path}: cannot be read as safetensors: its header would have {length:,} bytes, the file has {size:,}"
            f" and a header at most {MAX_HEADER:,}; the file is cut short, damaged, or of another kind"
        )


__all__ = ["check_header", "read_bytes", "read_json", "read_metadata", "read_tensors"]

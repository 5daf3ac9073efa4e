"""Where plugins keep what can be made again: converted models, token files, bundled scripts."""

from __future__ import annotations

import os
import tempfile
from contextlib import suppress
from pathlib import Path

VARIABLE = "MGK_CACHE"
"""The environment variable that names another directory."""


def cache_directory() -> Path:
    """Return ``$MGK_CACHE``, or the user's cache directory as the platform has it. It may not exist yet."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("mgk"))


def keep(path: Path, text: str) -> None:
    """Write a file of the cache whole or not at all; one that cannot be written only costs time later.

    Written beside and renamed: another process may read, or write the same file, at any time.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(name).replace(path)


__all__ = ["VARIABLE", "cache_directory", "keep"]

"""Where plugins keep what can be made again: converted models, token files, bundled scripts."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "MGK_CACHE"
"""The environment variable that names another directory."""


def cache_directory() -> Path:
    """Return ``$MGK_CACHE``, or the user's cache directory as the platform has it. It may not exist yet."""
    if given := os.environ.get(VARIABLE):
        return Path(given).expanduser()
    import platformdirs

    return Path(platformdirs.user_cache_dir("mgk"))


__all__ = ["VARIABLE", "cache_directory"]

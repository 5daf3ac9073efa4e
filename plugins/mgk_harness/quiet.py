"""Keeping the harness from writing to the terminal: mgk draws its own progress."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lm_eval.api import model, task


def _plain(items: Any, **_: Any) -> Any:
    return items


@contextmanager
def quiet() -> Iterator[None]:
    """Hold back the harness's bars and its log below errors inside the block."""
    logger = logging.getLogger("lm_eval")
    level, bars = logger.level, [(module, module.tqdm) for module in (model, task)]
    logger.setLevel(logging.ERROR)
    for module, _ in bars:
        module.tqdm = _plain
    try:
        yield
    finally:
        logger.setLevel(level)
        for module, bar in bars:
            module.tqdm = bar

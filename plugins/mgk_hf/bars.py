"""Progress bars and messages of other libraries: counted by mgk, or left out where no user can act on them."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from mgk_core.contract.progress import activity, track


def silence() -> None:
    """Turn off transformers' own bars, those of saving as well."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def quiet_bitsandbytes() -> None:
    """Leave out the warning, printed at import, that an optional kernel from the hub is missing."""
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Leave out what PEFT's own use of bitsandbytes and transformers makes them print."""
    quiet_bitsandbytes()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is_gradient_checkpointing", FutureWarning)
        yield


@contextmanager
def loading(name: str) -> Iterator[None]:
    """Count the weights that transformers loads inside the block, in place of its own bars."""
    from transformers.utils import logging

    silence()
    set_hook = getattr(logging, "set_tqdm_hook", None)  # since transformers 5
    if set_hook is None:
        with activity(f"loading {name}"):
            yield
        return
    before = set_hook(_counted)
    try:
        with activity(f"loading {name}"):
            yield
    finally:
        set_hook(before)


@contextmanager
def converting(name: str) -> Iterator[None]:
    """Count the tensors of a GGUF file that transformers converts, and silence its advice.

    What it advises on (dtypes, the tokenizer's origin) concerns files that mgk makes itself and
    checks by digest. Errors are raised as ever.
    """
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging

    verbosity, bar = logging.get_verbosity(), gguf.tqdm
    logging.set_verbosity_error()
    gguf.tqdm = lambda tensors, **_: track(
        tensors, "tensors"
    )  # it has no switch of its own
    try:
        with warnings.catch_warnings(), activity(f"converting {name}, first use only"):
            warnings.simplefilter("ignore")
            yield
    finally:
        gguf.tqdm = bar
        logging.set_verbosity(verbosity)


def _counted(
    make: Callable[..., Any], given: tuple[Any, ...], named: dict[str, Any]
) -> Any:
    """Make the bar that transformers asked for, around a collection that counts."""
    if given and isinstance(given[0], Collection):
        given = (track(given[0], "weights"), *given[1:])
    return make(*given, **named)

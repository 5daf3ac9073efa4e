"""Files beside a base's weights that are still true of a model derived from it: processor, licence and so on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mgk_core.contract.errors import StoreError

LARGEST = 64 * 2**20
"""Bytes; a larger file that nobody names is weights in a form that is not true any more."""

_WEIGHTS = (
    ".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".npz",
    ".ot", ".tflite", ".mlmodel", ".index.json",
)  # fmt: skip
_ANOTHERS = (
    "README.md",  # the base's model card; the derived model has one of its own
    "trainer_state.json",
    "adapter_config.json",
    "all_results.json",
    "train_results.json",
    "eval_results.json",
)
_OF_THE_VOCABULARY = (
    "tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "tekken.json", "vocab.json",
    "vocab.txt", "merges.txt", "added_tokens.json", "special_tokens_map.json",
)  # fmt: skip
_TEMPLATES = ("chat_template.json", "chat_template.jinja")


def snapshot(name: str, revision: str | None, commit: str | None) -> Path | None:
    """Return the cached directory of a hub id with all its small files; None where there is none.

    transformers fetches what it loads alone, so licence, processor and ``tokenizer.model`` may have
    to be fetched here. Without a network what is cached already is used.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    large = [f"*{end}" for end in _WEIGHTS if end != ".index.json"] + ["*/*"]
    options: dict[str, Any] = {"revision": commit or revision, "ignore_patterns": large}
    for offline in (False, True):
        try:
            found = snapshot_download(name, local_files_only=offline, **options)
            return Path(found)
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError):
            continue
    return None


def keep_beside(source: Path | None, target: Path, *, grown: bool) -> tuple[str, ...]:
    """Copy to ``target`` the files next to a base that are still valid; return their names.

    What the model itself has written there stays. A link that leads out of the base (or out of the
    hub's cache that it is part of) is not followed.

    :param grown: whether tokens were added, so that files of the old vocabulary are not true any more
    :raises StoreError: a file cannot be read or written
    """
    if source is None or not source.is_dir() or source.resolve() == target.resolve():
        return ()
    names = [
        name
        for name in _candidates(source, grown=grown)
        if not (target / name).exists()
    ]
    if any(
        (target / name).exists() for name in _TEMPLATES
    ):  # the one that was trained with
        names = [name for name in names if name not in _TEMPLATES]
    for name in names:
        try:
            shutil.copyfile(source / name, target / name)
        except OSError as error:
            raise StoreError(
                f"cannot copy {source / name} to {target}: {error}"
            ) from error
    return tuple(names)


def _candidates(source: Path, *, grown: bool) -> Iterator[str]:
    """Yield names of regular files that may be copied, sorted."""
    within = _root(source)
    for path in sorted(source.iterdir()):
        name = path.name
        if name.startswith(".") or name in _ANOTHERS or name.lower().endswith(_WEIGHTS):
            continue
        if grown and name in _OF_THE_VOCABULARY:
            continue
        real = path.resolve()
        if (
            real.is_file()
            and real.is_relative_to(within)
            and real.stat().st_size <= LARGEST
        ):
            yield name


def _root(source: Path) -> Path:
    """Return the folder that links may lead into: of a hub snapshot the repository's cache."""
    real = source.resolve()
    cached = real.parent.name == "snapshots" and (real.parent.parent / "blobs").is_dir()
    return real.parent.parent if cached else real

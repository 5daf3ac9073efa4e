"""``mgk export --format gguf``: the file, a Modelfile, the model card and the licence."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from mgk_core.contract.errors import EnvironmentFault, InputError
from mgk_share.gguf.file import TYPES, Source, check, write
from mgk_share.gguf.ollama import modelfile

KEPT = ("README.md", "NOTICE*", "LICENSE*", "USE_POLICY.md", "GEMMA_TERMS.html")


def gguf(model: Path, out: Path, kind: str | None) -> list[str]:
    """Write a model directory of transformers into ``out`` as llama.cpp reads it.

    :param kind: how matrices are stored, one of `TYPES`; None: ``f16``
    :return: lines for the user
    :raises InputError: llama.cpp has no such architecture, tokenizer or type
    :raises EnvironmentFault: the extra ``gguf`` is not installed
    """
    missing = [name for name in ("gguf", "transformers") if find_spec(name) is None]
    if missing:
        raise EnvironmentFault(
            f"--format gguf needs {' and '.join(missing)}: pip install 'mgk[gguf]'"
        )
    chosen = kind or TYPES[0]
    if chosen not in TYPES:
        raise InputError(f"--type {chosen}: expected one of {', '.join(TYPES)}")
    source = Source.open(model)
    path = out / f"{out.name}-{chosen.upper()}.gguf"
    write(source, path, chosen, out.name)
    checked = check(source, path)
    text, note = modelfile(path, source.tokenizer, source.stops)
    (out / "Modelfile").write_text(text, encoding="utf-8")
    _keep(model, out)
    lines = [
        f"{path.name}: {checked.tensors} tensors, {path.stat().st_size / 1e6:,.1f} MB",
        f"read back and compared: largest difference {checked.error:.2g} of a tensor's largest weight",
    ]
    if source.left_out:
        lines.append(
            f"text only: {len(source.left_out)} tensors of the vision tower are left out"
        )
    return [*lines, *([note] if note else ())]


def _keep(model: Path, out: Path) -> Sequence[Path]:
    found = [path for pattern in KEPT for path in sorted(model.glob(pattern))]
    return [Path(shutil.copyfile(path, out / path.name)) for path in found]

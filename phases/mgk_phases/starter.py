"""What ``mgk init`` writes: a configuration made from five answers, with a comment beside what one changes first."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from attrs import frozen

from mgk_core.contract.errors import InputError

HARDWARE = ("cpu", "gpu", "small-gpu")
"""small-gpu: the base is packed in 4 bits."""

_SHIPPED = "package:mgk_phases/data/korean_medical/base"
LANGUAGES = ("ko", "en")
"""Languages of which mgk ships texts that measure and texts that represent what a base knows."""


@frozen
class Answers:
    """The five answers.

    base: directory or hub id. data: one source for each phase. hardware: one of `HARDWARE`.
    keep: `LANGUAGES` or files of texts. out: the run directory.
    """

    base: str
    data: tuple[str, ...]
    hardware: str
    keep: tuple[str, ...]
    out: str


def check(answers: Answers) -> None:
    """:raises InputError: a file is not there, with the question that it answers."""
    if not answers.data:
        raise InputError("data: expected at least one file, folder or hub:OWNER/NAME")
    for source in (*answers.data, *(k for k in answers.keep if k not in LANGUAGES)):
        plain = not source.startswith(("hub:", "package:")) and "*" not in source
        if plain and not Path(source).exists():
            raise InputError(f"{source}: no such file or folder")


def starter(answers: Answers) -> str:
    """Return the configuration as TOML."""
    return "\n".join(_lines(answers)) + "\n"


def _lines(answers: Answers) -> Iterator[str]:
    name = Path(answers.out).name
    yield "# Written by mgk init. `mgk config --config FILE` prints every key with its value and source."
    yield f"name = {_text(name)}"
    yield ""
    yield from _base(answers)
    yield from _defaults(answers)
    yield from _keeping(answers)
    for index, (phase, source) in enumerate(phases(answers.data).items()):
        yield from _phase(answers, phase, source, first=index == 0)


def _base(answers: Answers) -> Iterator[str]:
    yield "[base]"
    yield 'type = "hf"'
    yield f"id = {_text(answers.base)}  # a directory or a hub id"
    if answers.hardware == "small-gpu":
        yield "quantize = \"nf4\"  # 4 bits for each weight; needs: pip install 'mgk[quantized]'"
    if answers.hardware != "cpu":
        yield "checkpointing = true  # less memory, more time: activations are computed twice"
    yield ""
    yield "[run]"
    yield f"device = {_text('cpu' if answers.hardware == 'cpu' else 'cuda')}"
    yield ""


def _defaults(answers: Answers) -> Iterator[str]:
    micro = {"cpu": 4, "gpu": 4, "small-gpu": 1}[answers.hardware]
    yield "[defaults]  # for every phase; a phase may have its own"
    yield 'adapter = { type = "lora", rank = 16, alpha = 32, targets = ["all-linear"] }'
    yield "# mgk lr-find tries rising rates on your data"
    yield 'optimizer = { type = "adamw", lr = 2e-4, schedule = "cosine", warmup_steps = 5, clip = 1.0 }'
    yield "# micro_batch: rows at a time; a smaller one needs less memory, batch_size is what a step learns from"
    yield f"train = {{ epochs = 1, batch_size = 16, micro_batch = {micro} }}"
    yield "evaluate = { limit = 200 }  # items of each probe; more items, smaller errors"
    if answers.hardware == "small-gpu":
        yield 'merge = { type = "original" }  # the adapter is merged into the full-precision weights'
    yield ""


def _keeping(answers: Answers) -> Iterator[str]:
    if not answers.keep:
        yield "# Nothing was named that must not be lost: what the base could do before is not measured."
        yield "# [phases.PHASE.data.base_probes] of the first phase names texts that measure it."
        yield ""
        return
    yield "[defaults.gate.keep-base]  # refuse a phase that makes the base's own probes this much worse"
    yield "share = 0.8"
    yield ""
    if answers.hardware == "small-gpu":
        yield "# drift-guard reads the base's weights, which are packed here, so the gate alone protects."
    else:
        yield "[defaults.retention.drift-guard]  # keeps the outputs of the base where its texts need them"
        yield "strength = 10.0  # higher: forgets less, learns less"
    yield ""


def _phase(answers: Answers, name: str, source: str, *, first: bool) -> Iterator[str]:
    yield f"[phases.{name}.data]  # the kind of rows is recognised: mgk data {source}"
    yield f"train = {_text(source)}"
    yield "test_share = 0.1  # held out, and measured before and after every phase"
    if not first or not answers.keep:
        yield ""
        return
    languages = [k for k in answers.keep if k in LANGUAGES]
    if languages:
        texts = ", ".join(_text(f"{_SHIPPED}/calibration_{k}.jsonl") for k in languages)
        yield f"calibration = [{texts}]  # texts that represent what the base knows"
    yield ""
    yield f"[phases.{name}.data.base_probes]  # what must not be lost: perplexity on texts that no phase trains on"
    for kept in answers.keep:
        if kept in LANGUAGES:
            yield f"base-{kept} = {_text(f'{_SHIPPED}/probe_{kept}.jsonl')}"
        else:
            yield f"base-{_word(kept)} = {_text(kept)}"
    yield ""


def phases(data: tuple[str, ...]) -> dict[str, str]:
    """Return phase name → source, in order; a name is made from the source's."""
    found: dict[str, str] = {}
    for source in data:
        word = name = _word(source)
        number = 2
        while name in found:
            name = f"{word}-{number}"
            number += 1
        found[name] = source
    return found


def _word(source: str) -> str:
    """Return a key that TOML takes without quotes, from the last part of a path or hub id."""
    last = source.partition("?")[0].rstrip("/").rpartition("/")[2]
    return re.sub(r"[^A-Za-z0-9_-]+", "-", last.partition(".")[0]).strip("-") or "data"


def _text(value: str) -> str:
    """Return a TOML string; JSON's escapes are TOML's."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")

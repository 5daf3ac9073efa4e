"""From a spec to a bundle: the shipped bases, local directories, hub ids, quantized ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from attrs import evolve, field, frozen

from mgk_core.contract.adapter import base_state_dict
from mgk_core.contract.errors import InputError, MgkError
from mgk_core.contract.files import check_header
from mgk_core.model.device import is_out_of_memory
from mgk_hf import gemma_q4, quantized, tiny
from mgk_hf.adapted_base import CONFIG as ADAPTER_CONFIG
from mgk_hf.adapted_base import AdapterDirectory, merged
from mgk_hf.bars import loading, silence
from mgk_hf.beside import snapshot
from mgk_hf.bundle import HfBundle
from mgk_hf.chat_template import Settings
from mgk_hf.checks import check_causal, check_kind, check_vocabulary, check_weights
from mgk_hf.cpu.calibrate import with_screen
from mgk_hf.failures import explain
from mgk_hf.licence import notice_of
from mgk_hf.network import take_apart
from mgk_hf.precision import (
    apply_policy,
    best_compute,
    give_back_memory,
    keep_stored,
)
from mgk_hf.prepare import add_tokens
from mgk_hf.specs import HfSpec

_TOKENIZERS = (
    "tokenizer.json",
    "tokenizer.model",
    "spiece.model",
    "vocab.json",
    "vocab.txt",
)


@frozen(eq=False)
class _Loaded:
    """A model with its tokenizer, as its files have it.

    notes: what the user should know. source: the local directory of its files. preparation: what
    was done to it already, for the ledger.
    """

    model: Any
    tokenizer: Any
    notes: tuple[str, ...] = ()
    source: Path | None = None
    preparation: dict[str, Any] = field(factory=dict)


def build(spec: HfSpec, device: torch.device) -> HfBundle:
    """Load or build the base that ``spec.id`` names, by its policy of dtypes, on ``device``.

    :raises InputError: the base cannot be loaded or run, whatever the libraries raise for it
    """
    try:
        return _build(spec, device)
    except MgkError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise explain(spec.id, spec.revision, error) from error


def _build(spec: HfSpec, device: torch.device) -> HfBundle:
    silence()
    loaded = _load(spec, device)
    model, tokenizer = loaded.model, loaded.tokenizer
    notes = [*loaded.notes, *check_vocabulary(model, tokenizer)]
    added = add_tokens(model, tokenizer, spec, _texts)
    _make_ready(model, spec, device)
    network = take_apart(model)
    preparation = dict(loaded.preparation)
    if added is not None:
        preparation |= added.entry(model)
        notes.append(str(added.extension))
    network = with_screen(network, tokenizer, spec.head)
    give_back_memory()
    if spec.quantize != "none":
        _note_source(model, spec)
    return HfBundle(
        network,
        tokenizer,
        device,
        notice=notice_of(loaded.source, str(getattr(model.config, "model_type", ""))),
        source=loaded.source,
        budget=spec.token_budget,
        notes=notes,
        preparation=preparation,
        adaptable=() if spec.towers else network.language,
        settings=Settings(spec.thinking, spec.system, spec.fold_system),
    )


def _load(spec: HfSpec, device: torch.device) -> _Loaded:
    """Load the base's files; an adapter's directory is its base with the adapter merged."""
    if spec.id == tiny.MODEL_ID:
        tokenizer = tiny.tiny_tokenizer(_texts(spec.text))
        return _Loaded(tiny.tiny_model(len(tokenizer), spec.seed), tokenizer)
    source = _source(spec)
    adapter = AdapterDirectory.at(source) if source else None
    if adapter is not None:
        return _with_adapter(adapter, spec, device)
    with loading(Path(spec.id).name):
        loaded = _pretrained(spec, str(source) if source else spec.id, device)
    if source is None:
        commit = getattr(loaded.model.config, "_commit_hash", None)
        source = snapshot(spec.id, spec.revision, commit)
    return evolve(loaded, source=source)


def _with_adapter(
    adapter: AdapterDirectory, spec: HfSpec, device: torch.device
) -> _Loaded:
    """Load an adapter's base and merge the adapter into it."""
    place = _base_of(adapter, spec)
    base = evolve(
        spec, id=str(place) if place else adapter.base, revision=adapter.revision
    )
    loaded = _load(base, device)
    model, preparation = merged(loaded.model, adapter)
    note = f"the adapter {adapter.path} was merged into its base {adapter.base} first"
    return evolve(
        loaded,
        model=model,
        tokenizer=_own_tokenizer(adapter.path) or loaded.tokenizer,
        notes=(*loaded.notes, note),
        preparation=preparation,
    )


def _make_ready(model: Any, spec: HfSpec, device: torch.device) -> None:
    """Put a loaded model on its device in its dtypes, frozen, and check that it is a causal one."""
    _set_dtypes(model, spec, device)
    quantized.keep_as_stored(model)
    packed = quantized.is_quantized(model)
    if not packed and spec.device_map is None:
        model.to(device)
    model.requires_grad_(False)
    model.eval()
    if spec.checkpointing:
        # Its name changes from transformers 5 to 6.
        enable = (
            getattr(model, "activation_checkpointing_enable", None)
            or model.gradient_checkpointing_enable
        )
        enable({"use_reentrant": False})
    if not packed:  # int8 takes its outliers from all rows together
        check_causal(spec.id, model)


def _base_of(adapter: AdapterDirectory, spec: HfSpec) -> Path | None:
    """Return the local directory of an adapter's base; None where it is a hub id.

    :raises InputError: it is quantized or an adapter itself, or its place is not there
    """
    if spec.quantize != "none":
        raise InputError(
            f"base.id: {adapter.path} is an adapter, which is merged into full-precision weights first;"
            " merge it into a model directory ('mgk run' without quantize, or PEFT) and quantize that"
        )
    found = Path(adapter.base).expanduser()
    if not found.is_dir() and (adapter.path / adapter.base).is_dir():
        found = adapter.path / adapter.base
    if not found.is_dir():
        return _local(adapter.base)
    if AdapterDirectory.at(found) is not None:
        raise InputError(
            f"base.id: {adapter.path} is an adapter for {found}, which is an adapter too; merge that one"
            " into its base first"
        )
    return _local(str(found))


def _own_tokenizer(path: Path) -> Any:
    """Return the tokenizer that goes along with an adapter; None where it has none."""
    from transformers import AutoTokenizer

    if not (path / "tokenizer_config.json").is_file():
        return None
    try:
        return AutoTokenizer.from_pretrained(str(path))
    except Exception as error:
        raise explain(str(path), None, error) from error


def _note_source(model: Any, spec: HfSpec) -> None:
    """Let the merge rule ``original`` find the weights that were quantized: in the computer's memory, where there is room."""
    from mgk_hf.unpack import sources

    plain = evolve(
        spec,
        quantize="none",
        double_quant=False,
        head="exact",
        dtype="float32",
        compute="float32",
        device_map=None,
    )
    sources[model] = lambda: base_state_dict(build(plain, torch.device("cpu")).model)


def _source(spec: HfSpec) -> Path | None:
    """Return the local directory of a base, None where there is none (yet)."""
    if spec.id == tiny.MODEL_ID:
        return None
    if spec.id == gemma_q4.MODEL_ID:
        return gemma_q4.prepare()
    return _local(spec.id)


def _set_dtypes(model: Any, spec: HfSpec, device: torch.device) -> None:
    """On a CPU: fp32 masters, the vocabulary's table as stored. Elsewhere, and where weights are packed: as loaded."""
    if (
        quantized.is_quantized(model)
        or device.type != "cpu"
        or spec.dtype not in {"auto", "float32", "stored"}
    ):
        return
    compute: Any = best_compute(device) if spec.compute == "auto" else spec.compute
    if spec.dtype == "stored":
        keep_stored(model, compute)
        return
    apply_policy(model, compute, masters=torch.float32)


def _local(name: str) -> Path | None:
    """Return the directory that a name means, or None where it can only be a hub id."""
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", ADAPTER_CONFIG)):
            raise InputError(
                f"base.id: {path} holds no config.json; expected a model directory as transformers writes it"
            )
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise InputError(
            f"base.id: {name!r}: no such directory{_from(path)}, and no hub id (expected owner/name);"
            f" shipped: {gemma_q4.MODEL_ID}, {tiny.MODEL_ID}"
        )
    return None


def _from(path: Path) -> str:
    """Return which directory a relative path starts from: a run may be resumed in another directory."""
    if path.is_absolute():
        return ""
    return f" in {Path.cwd()}, where this command was started (the whole path works anywhere)"


def _pretrained(spec: HfSpec, where: str, device: torch.device) -> _Loaded:
    from transformers import AutoConfig, AutoTokenizer

    common: dict[str, Any] = {
        "revision": spec.revision,
        "trust_remote_code": spec.trust_remote_code,
    }
    options: dict[str, Any] = {
        "dtype": _dtype(spec, device), "use_safetensors": True, "device_map": spec.device_map,
        **quantized.settings(spec.quantize, double=spec.double_quant),
    }  # fmt: skip
    if spec.attention != "auto":
        options["attn_implementation"] = spec.attention
    _check_directory(Path(where).expanduser(), spec)
    try:
        config = AutoConfig.from_pretrained(where, **common)
        check_kind(where, config)
        maker = _maker(config, spec)
        with _quiet():
            model, info = maker.from_pretrained(
                where,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are named below
                **options,
                **common,
            )
        tokenizer = AutoTokenizer.from_pretrained(where, **common)
        tokenizer(["a"])  # wrong settings may be noticed here alone
    except InputError:
        raise
    except Exception as error:
        # A damaged or foreign directory makes transformers, safetensors and torch raise almost anything.
        if is_out_of_memory(error):
            raise
        raise explain(where, spec.revision, error) from error
    notes = check_weights(where, info)
    # What the tokenizer was made from: 150 MB of Python objects for Gemma's.
    for spare in ("_vocab", "_merges"):
        if spare in vars(tokenizer):
            setattr(tokenizer, spare, type(getattr(tokenizer, spare))())
    return _Loaded(model, tokenizer, notes)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers from printing its report of keys: what is wrong becomes an error, the rest a note."""
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(before)


def _maker(config: Any, spec: HfSpec) -> Any:
    """Return the Auto class that loads the whole model: of some families both classes load one.

    ``AutoModelForCausalLM`` would take a multimodal Qwen 3.5 or Llama 4 for its language model.
    """
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    causal, multimodal = (
        cls._model_mapping
        for cls in (AutoModelForCausalLM, AutoModelForImageTextToText)
    )
    named = (getattr(config, "architectures", None) or [""])[0]
    kind = type(config)
    if kind in multimodal and multimodal[kind].__name__ == named:
        return AutoModelForImageTextToText
    if kind in causal or spec.trust_remote_code:
        return AutoModelForCausalLM
    return AutoModelForImageTextToText


def _check_directory(path: Path, spec: HfSpec) -> None:
    """Refuse a local directory whose weights are cut short, or that lacks what transformers would make up."""
    if not path.is_dir():
        return
    for entry in sorted(path.iterdir()):
        if not entry.is_file() and not entry.is_dir():
            raise InputError(
                f"base.id: {entry} is not a regular file (a pipe, a device, or a broken link); remove it"
            )
    for file in sorted(path.glob("*.safetensors")):
        check_header(file)
    _check_generation(path / "generation_config.json")
    if not spec.trust_remote_code and not any(
        (path / name).is_file() for name in _TOKENIZERS
    ):
        raise InputError(
            f"base.id: {path} holds no tokenizer; expected one of {', '.join(_TOKENIZERS)} beside the weights"
        )


def _check_generation(file: Path) -> None:
    """Refuse generation settings that transformers would leave out in silence, end tokens with them."""
    if not file.is_file():
        return
    try:
        table = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(
            f"base.id: {file} cannot be read: {error}; expected a JSON object"
        ) from error
    if not isinstance(table, dict):
        raise InputError(
            f"base.id: {file}: expected a JSON object, got {type(table).__name__}"
        )


def _dtype(spec: HfSpec, device: torch.device) -> Any:
    """Return the dtype to load in: as stored, unless one is named. Quantized on a CPU: fp32 around int8."""
    if spec.dtype == "float32" or (
        spec.dtype == "auto" and spec.quantize != "none" and device.type == "cpu"
    ):
        return torch.float32
    return "auto" if spec.dtype in {"auto", "stored"} else getattr(torch, spec.dtype)


def _texts(name: str) -> Iterator[str]:
    """Yield every string of a file of JSON lines, or the lines of a text file."""
    if name.startswith("package:"):
        package, _, rest = name.removeprefix("package:").partition("/")
        text = files(package).joinpath(rest).read_text(encoding="utf-8")
    else:
        text = Path(name).expanduser().read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("{"):
            yield from (v for v in json.loads(line).values() if isinstance(v, str))
        else:
            yield line

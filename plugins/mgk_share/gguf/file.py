"""The file itself: written tensor by tensor, then read back and compared with the source."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from attrs import field, frozen
from safetensors import safe_open

from mgk_core.contract.errors import InputError, StoreError
from mgk_core.contract.progress import counting
from mgk_share.gguf.layout import Array, Layout, layout_of, rope_factors
from mgk_share.gguf.vocabulary import Vocabulary, vocabulary_of

TYPES = ("f16", "q8_0", "bf16", "f32")
LARGEST_F16 = 65504.0
FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""As llama.cpp numbers them (``LLAMA_FTYPE``)."""
BLOCK = 32
ROPE_FACTORS = "rope_freqs.weight"


@frozen
class Source:
    """A model directory as it will be written. where: tensor name → its file."""

    directory: Path
    layout: Layout
    tokenizer: Any = field(repr=False)
    vocabulary: Vocabulary
    stops: tuple[int, ...]
    where: dict[str, Path] = field(repr=False)

    @classmethod
    def open(cls, directory: Path) -> Source:
        """Read configuration and tokenizer.

        :raises InputError: the model or its tokenizer has no form in llama.cpp
        """
        from transformers import AutoConfig, AutoTokenizer

        named = directory / "config.json"
        if not (named.is_file() and "model_type" in json.loads(named.read_bytes())):
            raise InputError(
                f"--format gguf: {directory} is not a model of transformers (no model_type in"
                " its config.json)"
            )
        config = AutoConfig.from_pretrained(str(directory))
        layout = layout_of(config)
        tokenizer = AutoTokenizer.from_pretrained(str(directory))
        where: dict[str, Path] = {}
        for path in sorted(directory.glob("*.safetensors")):
            with safe_open(path, "pt") as file:
                where |= dict.fromkeys(file.keys(), path)
        vocabulary = vocabulary_of(tokenizer, layout.config.vocab_size)
        if layout.architecture == "qwen2" and vocabulary.pre != "qwen2":
            raise InputError(
                "--format gguf: llama.cpp splits text for a Qwen 2 as Qwen's tokenizer does, and this"
                " run's tokenizer is another; share RUN/model instead"
            )
        return cls(directory, layout, tokenizer, vocabulary, _stops(directory), where)

    def tensors(self) -> Iterator[tuple[str, Array]]:
        """Yield (name in the file, fp32 values in the file's layout), one tensor at a time."""
        factors = rope_factors(self.layout.config)
        if factors is not None:
            yield ROPE_FACTORS, factors
        for name in self.where:
            stored = self.layout.name(name)
            if stored is not None:
                yield stored, self.layout.convert(stored, self._read(name))

    def shapes(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield what `tensors` will, as shapes."""
        factors = rope_factors(self.layout.config)
        if factors is not None:
            yield ROPE_FACTORS, factors.shape
        for name, path in self.where.items():
            stored = self.layout.name(name)
            if stored is not None:
                with safe_open(path, "pt") as file:
                    yield stored, tuple(file.get_slice(name).get_shape())

    @property
    def left_out(self) -> list[str]:
        """Tensors of the model that the file does not have, besides a tied head."""
        names = [n for n in self.where if self.layout.name(n) is None]
        return [n for n in names if not n.endswith("lm_head.weight")]

    def _read(self, name: str) -> Array:
        with safe_open(self.where[name], "pt") as file:
            values: Array = file.get_tensor(name).to(torch.float32).numpy()
        return values


def _stops(directory: Path) -> tuple[int, ...]:
    from transformers import GenerationConfig

    if not (directory / "generation_config.json").is_file():
        return ()
    found = GenerationConfig.from_pretrained(str(directory)).eos_token_id
    if found is None:
        return ()
    return (found,) if isinstance(found, int) else tuple(found)


def write(source: Source, path: Path, kind: str, title: str) -> None:
    """Write the file. kind: one of `TYPES`, for matrices; vectors are fp32.

    :raises InputError: a weight is too large for fp16
    """
    import gguf

    writer = gguf.GGUFWriter(path, source.layout.architecture)
    writer.add_type("model")
    writer.add_name(title)
    writer.add_file_type(FILE_TYPES[kind])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    source.layout.describe(writer)
    source.vocabulary.describe(writer)
    _special(source, writer)
    shapes = list(source.shapes())
    for name, shape in shapes:
        stored = stored_type(kind, shape)
        packed = gguf.quant_shape_to_byte_shape(shape, stored)
        size = math.prod(packed)
        writer.add_tensor_info(name, packed, np.dtype(np.uint8), size, raw_dtype=stored)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        with counting(len(shapes), "tensors") as advance:
            for name, values in source.tensors():
                stored = stored_type(kind, values.shape)
                writer.write_tensor_data(_packed(name, values, stored))
                advance(1)
    finally:
        writer.close()


def _packed(name: str, values: Array, stored: Any) -> Array:
    import gguf

    if stored == gguf.GGMLQuantizationType.F16 and np.abs(values).max() > LARGEST_F16:
        raise InputError(
            f"{name}: has weights beyond {LARGEST_F16:g}, which fp16 cannot hold; use --type bf16"
        )
    packed: Array = gguf.quantize(values, stored)
    return packed


def stored_type(kind: str, shape: Sequence[int]) -> Any:
    """Return how a tensor of this shape is stored; a row that blocks do not divide is fp16."""
    import gguf

    if len(shape) < 2:
        return gguf.GGMLQuantizationType.F32
    if kind == "q8_0" and shape[-1] % BLOCK:
        return gguf.GGMLQuantizationType.F16
    return gguf.GGMLQuantizationType[kind.upper()]


def _special(source: Source, writer: Any) -> None:
    """Write the tokens with a role, and the chat template."""
    tokenizer = source.tokenizer
    roles = {
        "bos": tokenizer.bos_token_id,
        "eos": tokenizer.eos_token_id,
        "unk": tokenizer.unk_token_id,
        "pad": tokenizer.pad_token_id,
        "eot": next((t for t in source.stops if t != tokenizer.eos_token_id), None),
    }
    for role, number in roles.items():
        if number is not None:
            getattr(writer, f"add_{role}_token_id")(number)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


@frozen
class Checked:
    """A file that was compared with its source. error: largest |Δw| / max |w| of a tensor."""

    tensors: int
    error: float


def check(source: Source, path: Path) -> Checked:
    """Read the file back and compare every value with the source's.

    :raises StoreError: a value differs by more than the type's rounding
    """
    import gguf

    stored = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    worst = 0.0
    with counting(len(stored), "tensors") as advance:
        for name, values in source.tensors():
            tensor = stored.pop(name)
            found = gguf.dequantize(tensor.data, tensor.tensor_type)
            difference = np.abs(found.reshape(values.shape) - values)
            if (difference > rounding(values, tensor.tensor_type.name)).any():
                raise StoreError(
                    f"{path}: {name} differs from the model by more than rounding to"
                    f" {tensor.tensor_type.name} explains; nothing was written"
                )
            largest = float(np.abs(values).max()) or 1.0
            worst = max(worst, float(difference.max()) / largest)
            advance(1)
    if stored:
        raise StoreError(f"{path}: has tensors that the model has not: {min(stored)}")
    return Checked(len(source.where) - len(source.left_out), worst)


def rounding(values: Array, kind: str) -> Array:
    """Return by how much each value may change where it is stored in a type."""
    size = np.abs(values)
    if kind == "F32":
        return np.zeros_like(size)
    if kind == "F16":  # 11 bits; below 2^-14 the spacing is fixed
        return np.maximum(size * 2.0**-11, 2.0**-25)
    if kind == "BF16":  # 8 bits
        return size * 2.0**-8
    # Q8_0: 127 steps a block, half a step from rounding; the step itself is fp16.
    blocks = size.reshape(-1, BLOCK).max(axis=1, keepdims=True)
    step = blocks / 127
    bound = step * 0.5001 + 127 * np.maximum(step * 2.0**-11, 2.0**-25)
    return np.broadcast_to(bound, (len(blocks), BLOCK)).reshape(size.shape)

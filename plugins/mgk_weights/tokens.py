"""Which rows of which table: by token, by file, by script, by id."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from mgk_core.contract.adapter import Vocabulary, state_of
from mgk_core.contract.errors import InputError
from mgk_weights.choose import Chosen, check_trainable, choose, parameters_of
from mgk_weights.spec import RowsSpec

_SHOWN = 5
_CHOICES = "new, tokens, tokens_file, scripts, ids or ids_file"


def tables(model: nn.Module, spec: RowsSpec) -> list[Chosen]:
    """Return the tables that ``spec`` means: by pattern, or the model's own ends."""
    if spec.targets:
        chosen = choose(model, spec.targets, spec.exclude)
        found = [c for c in chosen if _is_table(c)]
        if not found:
            raise InputError(
                "adapter.targets: none of these modules is an embedding or a linear module"
            )
        return found
    ends = _ends(model)
    found = [c for c in parameters_of(model) if c.module in ends and _is_table(c)]
    if not found:
        raise InputError(
            "adapter.targets: the modules that hold this model's token table are unknown; name them"
        )
    for c in found:
        check_trainable(c)
    return found


def _is_table(chosen: Chosen) -> bool:
    tables = (nn.Embedding, nn.Linear)
    return chosen.attribute == "weight" and isinstance(chosen.module, tables)


def _ends(model: nn.Module) -> list[nn.Module]:
    ends = []
    for getter in ("get_input_embeddings", "get_output_embeddings"):
        get = getattr(model, getter, None)
        end = get() if callable(get) else None
        if isinstance(end, nn.Module):
            ends.append(end)
    return ends


def chosen_ids(model: nn.Module, spec: RowsSpec, count: int) -> Tensor:
    """Return the ids of the rows to train, ascending, int64. count: rows of the table.

    :raises InputError: nothing is chosen, or something that the table does not have
    """
    found = {*spec.ids, *_ids_of_file(spec.ids_file), *_by_text(model, spec)}
    if not found:
        raise InputError(f"adapter type 'rows' chooses no row: set {_CHOICES}")
    outside = sorted(i for i in found if not 0 <= i < count)
    if outside:
        raise InputError(
            f"adapter: the table has rows 0 to {count - 1:,}, and no row {_some(outside)}"
        )
    return torch.tensor(sorted(found), dtype=torch.int64)


def _by_text(model: nn.Module, spec: RowsSpec) -> Iterator[int]:
    if not (spec.new or spec.tokens or spec.tokens_file or spec.scripts):
        return
    known = state_of(model).vocabulary
    if not known:
        raise InputError(
            "adapter: this base has no vocabulary that tokens could be looked up in; choose rows by ids or ids_file"
        )
    if spec.new:
        yield from _added(known[0])
    yield from _ids_of(known[0], spec.tokens, "adapter.tokens")
    if spec.tokens_file:
        lines = _read(spec.tokens_file, "tokens_file").splitlines()
        yield from _ids_of(known[0], [t for t in lines if t], spec.tokens_file)
    if spec.scripts:
        yield from _of_scripts(known[0], spec.scripts)


def _added(vocabulary: Vocabulary) -> range:
    if not vocabulary.added:
        raise InputError(
            "adapter.new: this base has no new tokens; set base.new_tokens or base.new_tokens_from"
        )
    return vocabulary.added


def _ids_of(
    vocabulary: Vocabulary, texts: tuple[str, ...] | list[str], where: str
) -> list[int]:
    found = [vocabulary.id_of(text) for text in texts]
    missing = [t for t, i in zip(texts, found, strict=True) if i is None]
    if missing:
        raise InputError(
            f"{where}: not one token of the base's vocabulary: {_some(missing)}; add them with base.new_tokens"
        )
    return [i for i in found if i is not None]


def _of_scripts(vocabulary: Vocabulary, scripts: tuple[str, ...]) -> list[int]:
    wanted = {script.upper(): 0 for script in scripts}
    found: list[int] = []
    for i, text in enumerate(vocabulary.texts()):
        script = script_of(text)
        if script in wanted:
            wanted[script] += 1
            found.append(i)
    if none := [s.lower() for s, n in wanted.items() if not n]:
        raise InputError(
            f"adapter.scripts: no token is written in {_some(none)}; expected the first word of its"
            " letters' Unicode names, such as hangul, latin or cjk"
        )
    return found


def script_of(text: str) -> str | None:
    """Return the script of a text's letters, as Unicode's names begin; None for none or several."""
    letters = {unicodedata.name(c, "").partition(" ")[0] for c in text if c.isalpha()}
    return letters.pop() if len(letters) == 1 else None


def _ids_of_file(name: str) -> list[int]:
    words = _read(name, "ids_file").split() if name else []
    try:
        return [int(word) for word in words]
    except ValueError as error:
        raise InputError(f"{name}: expected token ids: {error}") from error


def _read(name: str, key: str) -> str:
    try:
        return Path(name).expanduser().read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"adapter.{key}: {name} cannot be read as UTF-8 text: {error}"
        ) from error


def _some(things: list[str] | list[int]) -> str:
    more = f" and {len(things) - _SHOWN} more" if len(things) > _SHOWN else ""
    return ", ".join(map(repr, things[:_SHOWN])) + more

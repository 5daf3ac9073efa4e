"""Chats with pictures: where in a row they are, and reading them once to be sure of them.

Two layouts: parts of a message (``{"type": "image", "image": "lung.png"}``), or parts without a file,
which take the pictures of the row's column ``images`` in order, as in TRL and ``datasets``.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mgk_core.contract.bundle import PICTURE, Picture
from mgk_core.contract.errors import EnvironmentFault
from mgk_text import dialogues
from mgk_text.fields import BadRowError, Fields
from mgk_text.records import PictureDialogue
from mgk_text.table import Raw

_PLACES = ("image", "path", "url")
"""Keys under which a part of a message names its picture."""


def image_chat(fields: Fields, raw: Raw) -> PictureDialogue:
    """Return the dialogue of a row, with its pictures in the order in which they are shown."""
    column = fields.columns.column("messages")
    waiting = list(_column(fields, raw))
    given = len(waiting)
    pictures = list[Picture]()
    folder = Path(raw.file).parent
    messages = [
        _with_marks(item, f"{column}[{i}]", waiting, pictures, folder)
        for i, item in enumerate(_list(fields, raw, column))
    ]
    if waiting:
        raise BadRowError(
            fields.columns.column("images"),
            f"has {given} pictures, and the messages show {given - len(waiting)};"
            ' show each with {"type": "image"}',
        )
    values = {**raw.values, column: messages}
    plain = dialogues.chat(fields, Raw(raw.file, raw.line, values))
    shown = sum(m.content.count(PICTURE) for m in plain.messages)
    return PictureDialogue(
        plain.messages,
        plain.tools,
        plain.specialty,
        plain.group,
        plain.place,
        tuple(pictures[:shown]),
    )


def _list(fields: Fields, raw: Raw, column: str) -> Sequence[Any]:
    value = fields.columns.value(raw, "messages")
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            value = None
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise BadRowError(column, f"expected a list of messages, got {value!r:.40}")
    return value


def _column(fields: Fields, raw: Raw) -> Iterator[Any]:
    """Yield the pictures of the row's own column."""
    value = fields.columns.value(raw, "images")
    if value is None:
        return
    if isinstance(value, (str, bytes, Mapping)):
        yield value
    else:
        yield from value


def _with_marks(
    item: Any, where: str, waiting: list[Any], pictures: list[Picture], folder: Path
) -> Any:
    """Return a message whose pictures are marks in its text; the pictures go to a list."""
    if not isinstance(item, Mapping):
        return item  # the reader of chats names what is wrong
    key = "content" if "content" in item else "value"
    parts = item.get(key)
    if isinstance(parts, str) or not isinstance(parts, Sequence):
        text = parts.replace(PICTURE, "") if isinstance(parts, str) else parts
        return {**item, key: text}
    texts = list[str]()
    for number, part in enumerate(parts):
        place = f"{where}.{key}[{number}]"
        if isinstance(part, Mapping) and part.get("type") in ("image", "image_url"):
            pictures.append(_picture(_named(part, waiting, place), place, folder))
            texts.append(PICTURE)
        elif isinstance(part, Mapping) and isinstance(part.get("text"), str):
            texts.append(part["text"].replace(PICTURE, "").strip())
        else:
            raise BadRowError(place, f"expected a text or an image, got {part!r:.60}")
    text = "".join(texts)
    if PICTURE in text and item.get("role", item.get("from")) in ("assistant", "gpt"):
        raise BadRowError(where, "an answer shows a picture; only text can be learnt")
    return {**item, key: text}


def _named(part: Mapping[str, Any], waiting: list[Any], place: str) -> Any:
    """Return what a part shows: what it names itself, or the next of the row's column."""
    own = next((part[k] for k in _PLACES if part.get(k) is not None), None)
    if own is not None:
        return own
    if not waiting:
        raise BadRowError(
            place,
            "names no picture, and the row's column images has none left; give its file as"
            ' {"type": "image", "image": "FILE"}',
        )
    return waiting.pop(0)


def _picture(value: Any, place: str, folder: Path) -> Picture:
    """Read a picture: a file beside the data, or the bytes of a data set."""
    data = b""
    path = value
    if isinstance(value, Mapping):
        data, path = value.get("bytes") or b"", value.get("path") or ""
    if not isinstance(path, str) or not (path or data):
        raise BadRowError(place, f"expected a file's name, got {value!r:.60}")
    if not data:
        file = (folder / Path(path).expanduser()).resolve()
        if not file.is_file():
            raise BadRowError(place, f"{path}: no such picture; expected it at {file}")
        path = str(file)
    found = Picture(path, data)
    content = found.read()
    _check(content, path or "a picture inside the file", place)
    digest = hashlib.blake2b(content, digest_size=16).hexdigest()
    return Picture(path, data, digest)


def _check(content: bytes, name: str, place: str) -> None:
    """Decode a picture as a whole: one that is cut short is only found so."""
    try:
        from PIL import Image
    except ImportError as error:
        raise EnvironmentFault(
            "data type 'image-chat' needs Pillow: pip install 'mgk[vision]'"
        ) from error
    try:
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except Exception as error:  # noqa: BLE001 - Pillow's decoders raise what they like
        what = str(error) or type(error).__name__
        reason = "it is not a picture" if "identify" in what else what
        raise BadRowError(place, f"{name}: cannot be read: {reason}") from None

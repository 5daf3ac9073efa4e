"""Reading one table into a frozen attrs class: strictly, and with every problem in it."""

from __future__ import annotations

import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
import cattrs
from attrs import NOTHING

from mgk_core.config.tree import Tree
from mgk_core.contract.errors import InputError, Problem, nearest
from mgk_core.contract.specs import Spec

T = TypeVar("T")


def read_table(
    tree: Tree, cls: type[T], table: Any, path: tuple[str, ...], problems: list[Problem]
) -> T | None:
    """Read a table into a frozen attrs class, collecting every problem in it."""
    if not isinstance(table, Mapping):
        problems.append(tree.problem(path, "expected a table"))
        return None
    fields = {a.name: a for a in attrs.fields(cls)}  # type: ignore[arg-type]
    before = len(problems)
    found = _values(tree, cls, table, path, problems)
    for name, attribute in fields.items():
        if attribute.default is NOTHING and name not in table:
            problems.append(tree.problem((*path, name), "missing"))
    if len(problems) > before:
        return None
    try:
        return cls(**found)
    except (ValueError, InputError) as error:
        problems.append(tree.problem(path, str(error)))
        return None


def _values(
    tree: Tree,
    cls: type,
    table: Mapping[str, Any],
    path: tuple[str, ...],
    problems: list[Problem],
) -> dict[str, Any]:
    """Return the table's values, structured and validated, of the keys that the class has."""
    fields: dict[str, Any] = {a.name: a for a in attrs.fields(cls)}
    hints = typing.get_type_hints(cls)
    found: dict[str, Any] = {}
    for key, value in table.items():
        if key not in fields:
            if (problem := _unknown(cls, key, value, fields)) is not None:
                problems.append(tree.problem((*path, key), problem))
            continue
        try:
            found[key] = _value(hints[key], value)
            validator = fields[key].validator
            if validator is not None:
                validator(None, fields[key], found[key])
        except (ValueError, TypeError, cattrs.BaseValidationError) as error:
            problems.append(tree.problem((*path, key), _say(error, hints[key], value)))
    return found


def _unknown(
    cls: type, key: str, value: object, fields: Mapping[str, object]
) -> str | None:
    """Return what is wrong with a key that the class does not have; None where an earlier version's default is."""
    retired = cls.retired.get(key) if issubclass(cls, Spec) else None
    if retired is None:
        return f"unknown key{nearest(key, fields)}"
    if value == retired.default:
        return None
    return f"this key was removed; {retired.instead}"


def _say(error: BaseException, hint: Any, value: Any) -> str:
    if isinstance(error, ValueError) and str(error).startswith("expected"):
        return str(error)
    return f"expected {_describe(hint)}, got {value!r:.60}"


def _describe(hint: Any) -> str:
    names = {
        int: "an integer",
        float: "a number",
        str: "a string",
        bool: "true or false",
        type(None): "nothing",
    }
    if hint in names:
        return names[hint]
    arguments = typing.get_args(hint)
    origin = typing.get_origin(hint)
    if origin is tuple or origin is list:
        return f"an array, each {_describe(arguments[0])}"
    if origin is dict:
        return f"a table, each value {_describe(arguments[1])}"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    options = [_describe(a) for a in arguments if a is not type(None)]
    return " or ".join(options) if options else str(hint)


LARGEST = 2**63 - 1  # what torch, JSON's readers and TOML's agree on


def _strict(kind: type) -> Callable[[Any, Any], Any]:
    def structure(value: Any, _: Any) -> Any:
        if type(value) is int and abs(value) > LARGEST:
            raise ValueError(
                f"expected {_describe(kind)} of at most {LARGEST}, got one of {len(str(value))} digits"
            )
        if kind is float and type(value) is int:
            return float(value)
        if type(value) is not kind:
            raise ValueError(f"expected {_describe(kind)}, got {value!r:.60}")
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"expected a number, got {value}")
        return value

    return structure


_converter = cattrs.Converter(forbid_extra_keys=True, detailed_validation=False)
for _kind in (int, float, str, bool):
    _converter.register_structure_hook(_kind, _strict(_kind))


def _value(hint: Any, value: Any) -> Any:
    """Structure one value strictly: no string becomes a number, no number a bool."""
    arguments = typing.get_args(hint)
    if type(None) in arguments or (
        len(arguments) > 1 and typing.get_origin(hint) in (typing.Union, _UNION)
    ):
        return _union(hint, arguments, value)
    if typing.get_origin(hint) is typing.Literal:
        if not any(value == word and type(value) is type(word) for word in arguments):
            raise ValueError(f"expected {_describe(hint)}, got {value!r:.60}")
        return value
    if typing.get_origin(hint) is tuple and not isinstance(value, (list, tuple)):
        raise ValueError(f"expected {_describe(hint)}, got {value!r:.60}")
    if typing.get_origin(hint) is dict and not isinstance(value, Mapping):
        raise ValueError(f"expected {_describe(hint)}, got {value!r:.60}")
    if hint is Any:
        return value
    return _converter.structure(value, hint)


_UNION = type(int | str)


def _union(hint: Any, arguments: tuple[Any, ...], value: Any) -> Any:
    if value is None and type(None) in arguments:
        return None
    for option in sorted(
        (a for a in arguments if a is not type(None)), key=lambda a: a is float
    ):
        try:
            return _value(option, value)
        except (ValueError, TypeError, cattrs.BaseValidationError):
            continue
    raise ValueError(f"expected {_describe(hint)}, got {value!r:.60}")

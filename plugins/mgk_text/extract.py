"""One extractor for generated answers: strict, and lenient if the strict one finds nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence

from attrs import frozen

from mgk_text.records import LETTERS

_REASONED = re.compile(
    r"\s*<reasoning>(?P<why>.*?\S.*?)</reasoning>\s*(?P<rest>.*)", re.DOTALL
)
_CIRCLED = "①②③④⑤⑥⑦⑧⑨⑩"
_STATED = re.compile(
    r"(?:정답|답|[Aa]nswer)\s*(?:은|는|is)?\s*[:：]?\s*[(\[]?\s*"
    r"(?:(?P<letter>[A-Ja-j])|(?P<number>10|[1-9])\s*번|(?P<circled>[①-⑩]))(?![A-Za-z가-힣0-9])"
)
_LEADING = re.compile(
    r"[(\[]?\s*(?:(?P<letter>[A-J])|(?P<circled>[①-⑩]))\s*(?:[)\].:,]|$)"
)


@frozen
class Extracted:
    """The option that an answer chose, 0-based, None if it is invalid.

    strict: the answer is exactly one option's letter or content (after the reasoning, if one is
    expected). lenient: or it names exactly one option in other words. formatted: it has the
    expected form, whatever it chose.
    """

    strict: int | None
    lenient: int | None
    formatted: bool


def extract(text: str, options: Sequence[str], *, reasoning: bool = False) -> Extracted:
    """Read an answer. reasoning: ``<reasoning>…</reasoning>`` must come first, then one letter."""
    found = _REASONED.fullmatch(text)
    rest = found["rest"] if found else text
    exact = _exact(rest, options)
    letter = exact is not None and rest.strip() == LETTERS[exact]
    formatted = (found is not None and letter) if reasoning else exact is not None
    strict = exact if formatted else None
    lenient = exact if exact is not None else _lenient(rest, options)
    return Extracted(strict, lenient, formatted)


def _exact(text: str, options: Sequence[str]) -> int | None:
    plain = text.strip()
    if plain in LETTERS[: len(options)] and len(plain) == 1:
        return LETTERS.index(plain)
    wanted = _folded(plain)
    same = [i for i, o in enumerate(options) if _folded(o) == wanted]
    return same[0] if len(same) == 1 else None


def _lenient(text: str, options: Sequence[str]) -> int | None:
    """Return the option that a free wording names; None if it names none or several."""
    marked = {_index(m) for m in _STATED.finditer(text)}
    if not marked and (leading := _LEADING.match(text.strip())):
        marked = {_index(leading)}
    marked = {i for i in marked if i < len(options)}
    if marked:
        return marked.pop() if len(marked) == 1 else None
    named = _named(text, options)
    return named[0] if len(named) == 1 else None


def _index(match: re.Match[str]) -> int:
    groups = match.groupdict()
    if groups.get("letter"):
        return LETTERS.index(groups["letter"].upper())
    if groups.get("number"):
        return int(groups["number"]) - 1
    return _CIRCLED.index(groups["circled"])


def _named(text: str, options: Sequence[str]) -> list[int]:
    """Return options whose content is in the text, except those inside a longer one that is too."""
    folded = _folded(text)
    order = sorted(range(len(options)), key=lambda i: -len(_folded(options[i])))
    found = []
    for i in order:
        wanted = _folded(options[i])
        if wanted and wanted in folded:
            found.append(i)
            folded = folded.replace(wanted, "\0")
    return sorted(found)


def _folded(text: str) -> str:
    """Ignore case, spaces and final stops: Korean terms are written with and without spaces."""
    return re.sub(r"\s+", "", text).strip(".。").casefold()

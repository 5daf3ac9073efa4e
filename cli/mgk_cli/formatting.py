"""Formatting of numbers, sizes, durations and untrusted text."""

from __future__ import annotations

import math
import unicodedata

_UNITS = ("B", "kB", "MB", "GB", "TB")


def clean(text: object, *, lines: bool = False) -> str:
    """Return text in which everything that could control a terminal is escaped.

    Escaped are control characters, direction marks, line separators and lone surrogates.
    lines: keep line breaks.
    """
    return "".join(c if c == "\n" and lines else _shown(c) for c in str(text))


def _shown(char: str) -> str:
    if char == " " or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return char
    if char == "\u200d":  # zero-width joiner: part of emoji and some scripts, harmless
        return char
    return char.encode("unicode_escape").decode("ascii")


def cells(text: str) -> int:
    """Return the terminal cells that a text takes; Korean takes two a character."""
    from rich.cells import cell_len

    return max(map(cell_len, text.split("\n")))


def shorten(text: str, width: int) -> str:
    """Return text in at most ``width`` terminal cells, with an ellipsis in the middle if it is cut.

    Both ends stay, since names of probes differ in either: ``korean-m…-generated``.
    """
    if cells(text) <= width:
        return text
    head, tail = (
        _fitting(text, width // 2),
        _fitting(text[::-1], (width - 1) // 2)[::-1],
    )
    return f"{head}…{tail}"


def _fitting(text: str, width: int) -> str:
    end = len(text)
    while cells(text[:end]) > width:
        end -= 1
    return text[:end]


def number(value: float | None, digits: int = 4) -> str:
    """Return a number with this many significant digits; ``–`` for None."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e6:
        places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:.{places}f}"
    return f"{value:.{digits - 1}e}"


def signed(value: float | None, digits: int = 3) -> str:
    """Return a difference with its sign."""
    text = number(value, digits)
    return text if value is None or text.startswith("-") or value == 0 else f"+{text}"


def score(value: float | None, stderr: float | None = None) -> str:
    """Return ``value ± stderr``, both rounded to the second digit of the standard error."""
    if value is None:
        return "–"
    if (
        stderr is None
        or not math.isfinite(stderr)
        or stderr <= 0
        or not math.isfinite(value)
    ):
        return number(value)
    digits = places(stderr)
    return f"{value:.{digits}f} ± {stderr:.{digits}f}"


def places(stderr: float) -> int:
    """Return the decimal places that show two digits of a standard error."""
    if not math.isfinite(stderr) or stderr <= 0:
        return 3
    return min(8, max(0, 1 - math.floor(math.log10(stderr))))


def share(value: float | None) -> str:
    """Return a fraction as a percentage."""
    return "–" if value is None else f"{100 * value:.0f} %"


def count(value: float) -> str:
    """Return a whole number with thousands separators."""
    return f"{round(value):,}"


def size(value: float | None) -> str:
    """Return bytes in a suitable unit (powers of 1000)."""
    if value is None:
        return "–"
    amount, unit = float(value), 0
    while abs(amount) >= 999.5 and unit < len(_UNITS) - 1:
        amount, unit = amount / 1000, unit + 1
    return (
        f"{amount:.0f} {_UNITS[unit]}"
        if unit == 0 or amount >= 99.95
        else f"{amount:.1f} {_UNITS[unit]}"
    )


def duration(seconds: float | None) -> str:
    """Return seconds as ``0.4 s``, ``12 s``, ``3 min 05 s`` or ``2 h 10 min``."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def several(n: int, one: str, many: str | None = None) -> str:
    """Return ``1 error``, ``2 errors``."""
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def digest(value: str, length: int = 12) -> str:
    """Return the first characters of a digest."""
    return clean(value[:length])


def rate(per_second: float | None, unit: str) -> str:
    """Return ``950 tokens/s`` or ``1.2k tokens/s``."""
    if per_second is None or not math.isfinite(per_second):
        return f"– {unit}/s"
    if per_second < 999.5:
        return f"{number(per_second, 3)} {unit}/s"
    return f"{number(per_second / 1000, 3)}k {unit}/s"


def clock(seconds: float | None) -> str:
    """Return a remaining time as ``m:ss`` or ``h:mm:ss``."""
    if seconds is None or not math.isfinite(seconds):
        return "–:––"
    whole = max(0, round(seconds))
    hours, rest = divmod(whole, 3600)
    minutes, seconds = divmod(rest, 60)
    return (
        f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
    )

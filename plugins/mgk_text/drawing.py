"""An inspection as text for a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from mgk_text.inspection import Example, Inspection, Lengths, Part
from mgk_text.problems import several, summary, verb

_BAR = 40  # columns of the longest bar
_MARKS = ("⟦", "⟧")  # around what is learnt where there are no colours
_SHOWN = 3
_LISTED = 10
_CHARACTERS = 600  # of one example


def draw(found: Inspection, base: str, *, exact: bool) -> None:
    """Print an inspection. exact: whether ``base`` is the user's own choice."""
    for note in found.notes:
        click.echo(clean(note))
    click.echo(f"type {found.type}: {several(found.rows, 'row')}")
    if found.lengths is not None:
        hint = "" if exact else "; give --base for your own"
        click.echo(f"\ntokens of {clean(base)}{hint}")
        _draw_lengths(found.lengths)
    if found.repeated:
        _draw_places(
            f"{several(len(found.repeated), 'row')}"
            f" {verb(len(found.repeated), 'repeat')} an earlier one",
            found.repeated,
        )
    if found.shared:
        _draw_lines(
            f"contamination: {several(len(found.shared), 'row')}"
            f" {verb(len(found.shared), 'share')} text with a probe",
            found.shared,
        )
    if found.examples:
        click.echo(f"\nexamples; {_legend()} is learnt")
        for example in found.examples:
            _draw_example(example)
    if found.problems:
        click.echo(f"\n{several(len(found.problems), 'bad row')}")
        for problem in summary(found.problems):
            click.echo(f"  {clean(problem)}")


def _draw_lengths(lengths: Lengths) -> None:
    share = lengths.learnt / lengths.tokens
    click.echo(
        f"  {several(lengths.examples, 'example')}, {several(lengths.tokens, 'token')},"
        f" {share:.0%} of them learnt;"
        f" median {lengths.median}, 95 % up to {lengths.high}, longest {lengths.longest}"
    )
    most = max(one.count for one in lengths.bins)
    for one in lengths.bins:
        bar = "█" * round(_BAR * one.count / most)
        click.echo(f"  {one.first:>6}–{one.last:<6} {bar} {one.count:,}")
    click.echo("  max_length  longer  learnt tokens lost  nothing left")
    for cut in lengths.truncation:
        lost = (
            f"{cut.lost:,} ({cut.lost / lengths.learnt:.0%})" if lengths.learnt else "0"
        )
        click.echo(
            f"  {cut.max_length:>10}  {cut.longer:>6,}  {lost:>18}  {cut.nothing:>12,}"
        )


def _draw_places(heading: str, places: Sequence[str]) -> None:
    more = " …" if len(places) > _SHOWN else ""
    click.echo(f"\n{heading}: {clean(', '.join(places[:_SHOWN]))}{more}")


def _draw_lines(heading: str, lines: Sequence[str]) -> None:
    click.echo(f"\n{heading}")
    for line in lines[:_LISTED]:
        click.echo(f"  {clean(line)}")
    if len(lines) > _LISTED:
        click.echo(f"  and {len(lines) - _LISTED:,} more")


def _draw_example(example: Example) -> None:
    click.echo(f"  {clean(example.place)}")
    room = _CHARACTERS
    text = ""
    for part in example.parts:
        shown = Part(part.text[:room], part.learnt)
        room -= len(shown.text)
        text += _marked(shown)
    if room <= 0:
        text += " …"
    for line in text.split("\n"):
        click.echo(f"    {line}")


def _marked(part: Part) -> str:
    text = clean(part.text)
    if not part.learnt or not text:
        return text
    if _colours():
        return "\n".join(
            click.style(line, fg="green", bold=True) for line in text.split("\n")
        )
    return f"{_MARKS[0]}{text}{_MARKS[1]}"


def _legend() -> str:
    return (
        click.style("this colour", fg="green", bold=True)
        if _colours()
        else "text in ⟦ ⟧"
    )


def _colours() -> bool:
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR")


def clean(text: object) -> str:
    """Return text in which nothing can control a terminal; line breaks stay."""
    return "".join(
        c if c == "\n" or c.isprintable() else c.encode("unicode_escape").decode()
        for c in str(text)
    )

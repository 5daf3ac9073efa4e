"""``mgk agent-docs``."""

from __future__ import annotations

from importlib.resources import files

import click

from mgk_cli.lazy import Command

START = "start"
TOPICS = {
    START: "the commands, in the order to use them",
    "pipeline": "write a configuration",
    "errors": "read an error and fix its cause",
    "report": "judge what a run gained and lost",
}


@click.command(
    "agent-docs",
    cls=Command,
    short_help="Print what a coding assistant needs to use mgk.",
    epilog="Example: mgk agent-docs pipeline",
)
@click.argument("topic", default=START)
def command(*, topic: str) -> None:
    """Print TOPIC as Markdown, for a coding assistant to read: start, pipeline, errors or report.

    Without TOPIC: start, and the list of topics.
    """
    from mgk_core.contract.errors import InputError, nearest

    if topic not in TOPICS:
        raise InputError(
            f"{topic}: no such topic{nearest(topic, TOPICS)}; expected one of {', '.join(TOPICS)}"
        )
    text = (files("mgk_cli") / "agent_docs" / f"{topic}.md").read_text(encoding="utf-8")
    click.echo(text, nl=False)
    if topic == START:
        click.echo("\nTopics:\n")
        for name, about in TOPICS.items():
            click.echo(f"- `mgk agent-docs {name}`: {about}")

"""The model card: the contents of ``model/README.md``, taken entirely from the run's own records."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mgk_core.config.render import as_table
from mgk_core.contract.bundle import HasCard, Score
from mgk_core.record.ledger import PhaseEntry
from mgk_core.record.run_directory import CONFIG
from mgk_core.run.session import Session

CARD, RUN_FILE = "README.md", "mgk-run.toml"
_MEDICAL = re.compile(
    r"medic|medgemma|clinic|health|kormed|\bkcd\b|의학|의료|임상", re.IGNORECASE
)
_CUT = 16


def write_card(where: Path, session: Session) -> None:
    """Write the card of a finished run, and the configuration that makes the model again beside it."""
    text = "\n".join(_lines(session)) + "\n"
    (where / CARD).write_text(text, encoding="utf-8")
    config = session.store.path(CONFIG).read_text(encoding="utf-8")
    (where / RUN_FILE).write_text(config, encoding="utf-8")


def adapter_card(card: str, phases: Sequence[str]) -> str:
    """Return the card of an exported adapter, made from that of the run's whole model.

    :param card: the text of ``model/README.md``
    :param phases: those that the adapter has
    """
    _, metadata, text = card.split("---\n", 2)
    kept = [
        line for line in metadata.splitlines() if not line.startswith("library_name:")
    ]
    kept = [line.replace('"finetune"', '"adapter"') for line in kept]
    head = "\n".join(["---", *kept, 'library_name: "peft"', "---", ""])
    title, _, rest = text.lstrip().partition("\n")
    added = (
        f"These files are one PEFT adapter for the original base: the phases {', '.join(phases)} as one."
        " What follows describes the model that base and adapter are together."
    )
    return f"{head}\n{title}\n\n{added}\n{rest}"


def _lines(session: Session) -> Iterator[str]:
    config, bundle = session.config, session.bundle
    facts = dict(bundle.card()) if isinstance(bundle, HasCard) else {}
    table = as_table(config)
    yield from _front_matter(facts)
    yield f"# {config.title or config.name}"
    yield ""
    phases = [e for e in session.ledger.phases if e.result == "committed"]
    yield (
        f"{_base(table)} after {_count(len(phases), 'phase')} of adapter training with mgk. Each adapter"
        " was merged into the weights before the next phase began, so this is an ordinary model."
    )
    if _is_medical(table):
        yield ""
        yield (
            "**Not for clinical use.** Nothing here was evaluated for diagnosis, treatment or any other"
            " medical decision."
        )
    apart = [e.phase for e in session.ledger.phases if e.result == "kept_apart"]
    if apart:
        yield ""
        yield f"Not part of this model: {', '.join(apart)}, whose adapter was kept apart."
    yield from _about_base(session, facts, table)
    yield from _about_phases(session, table)
    yield from _about_scores(session)
    yield from _about_making(session)


def _is_medical(table: Mapping[str, Any]) -> bool:
    """Return whether names or data of a pipeline are medical ones; its card then warns."""
    base = table["base"]
    named = (table["name"], table["title"], base.get("id"), base.get("path"))
    data = [phase["data"] for phase in table["phases"].values()]
    return _MEDICAL.search(json.dumps([*named, *data], ensure_ascii=False)) is not None


def _front_matter(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yield the hub's metadata as YAML; JSON is YAML, so values need no other quoting."""
    yield "---"
    for key in sorted(facts):
        yield f"{key}: {json.dumps(facts[key], ensure_ascii=False)}"
    yield "tags: [mgk]"
    yield "---"
    yield ""


def _base(table: Mapping[str, Any]) -> str:
    base = table["base"]
    return f"`{base.get('id') or base.get('path') or base['type']}`"


def _about_base(
    session: Session, facts: Mapping[str, Any], table: Mapping[str, Any]
) -> Iterator[str]:
    ledger = session.ledger
    yield from ("", "## Base", "")
    yield f"- {_base(table)}, digest of its weights `{_short(ledger.base)}`"
    if revision := table["base"].get("revision"):
        yield f"- revision `{revision}`"
    if (quantize := table["base"].get("quantize", "none")) != "none":
        yield f"- trained beside {quantize} weights"
    licence = facts.get("license_name") or facts.get("license")
    yield (
        f"- licence of the base: {licence}; its terms hold for this model too"
        if licence
        else "- licence of the base: not stated by it; find it out before you share this model"
    )
    if ledger.preparation:
        made = ledger.preparation
        what = made.get("adapter") or made.get("tokens", "")
        yield f"- prepared before the first phase: {made.get('what', '')} ({what})"


def _about_phases(session: Session, table: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", "## Phases", "")
    yield "| phase | data | training examples | steps | adapter | result | weights after |"
    yield "|---|---|---:|---:|---|---|---|"
    for entry in session.ledger.phases:
        yield _phase_row(session, entry, table["phases"][entry.phase])


def _phase_row(session: Session, entry: PhaseEntry, phase: Mapping[str, Any]) -> str:
    data, adapter = phase["data"], phase["adapter"]
    files = data.get("train") or ""
    names = [files] if isinstance(files, str) else list(files)
    shown = ", ".join(f"`{Path(str(name)).name}`" for name in names if name)
    examples = len(session.data[entry.index].train)
    rank = f" rank {adapter['rank']}" if "rank" in adapter else ""
    cells = (
        entry.phase,
        f"{data['type']} {shown}".strip(),
        f"{examples:,}",
        f"{entry.steps:,}",
        f"{adapter['type']}{rank}",
        entry.result.replace("_", " "),
        f"`{_short(entry.merged)}`",
    )
    return f"| {' | '.join(cells)} |"


def _about_scores(session: Session) -> Iterator[str]:
    """Yield the retention matrix: every probe in every row, with standard error and n."""
    yield from ("", "## Scores", "")
    rows = session.rows
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    if not names:
        yield "Nothing was measured."
        return
    yield "Mean ± standard error (number of items) on the pipeline's own held-out probes."
    yield ""
    yield f"| probe | better | {' | '.join(_title(name) for name, _ in rows)} |"
    yield "|---|---|" + "---:|" * len(rows)
    for name in names:
        yield _probe_row(name, [row.get(name) for _, row in rows])
    if session.marks:
        yield ""
        yield "; ".join(f"row {name}: {mark}" for name, mark in session.marks.items())


def _title(row: str) -> str:
    return "base" if row == "base" else f"after {row}"


def _probe_row(name: str, scores: Sequence[Score | None]) -> str:
    first = next(score for score in scores if score is not None)
    better = "higher" if first.higher_is_better else "lower"
    cells = [_score(score) for score in scores]
    return f"| {name} ({first.metric}) | {better} | {' | '.join(cells)} |"


def _score(score: Score | None) -> str:
    return (
        "" if score is None else f"{score.value:.4g} ± {score.stderr:.2g} ({score.n})"
    )


def _about_making(session: Session) -> Iterator[str]:
    libraries = session.ledger.environment.get("libraries", {})
    versions = ", ".join(f"{name} {version}" for name, version in libraries.items())
    yield from ("", "## Made with", "")
    yield f"`{RUN_FILE}` is the run's whole configuration. In the directory that its paths start from:"
    yield from (
        "",
        "```bash",
        f"mgk run --config {RUN_FILE} --out runs/again",
        "```",
        "",
    )
    device = session.ledger.environment.get("device", "")
    yield f"Digest of the weights: `{session.ledger.head}`. Device {device}; {versions}."


def _short(digest: str) -> str:
    return digest[:_CUT]


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"

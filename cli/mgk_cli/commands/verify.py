"""``mgk verify``."""

from __future__ import annotations

from pathlib import Path

import click

from mgk_cli import options
from mgk_cli.lazy import Command

DIFFERS = 2


@click.command(
    "verify",
    cls=Command,
    short_help="Check every file of a run against its ledger.",
    epilog="Example: mgk verify runs/textmodel-1 --weights",
)
@options.RUN
@click.option(
    "--weights",
    is_flag=True,
    help="Also rebuild the weights from the base and the adapters.",
)
@options.base_option
@options.without_option
@options.json_option
def command(
    *,
    run: Path,
    weights: bool,
    base: Path | None,
    without: tuple[str, ...],
    as_json: bool,
) -> int:
    """Recompute the digest of every file of RUN and the journal's hash chain.

    Lists everything that differs, the earliest first. Exits 2 if anything does.
    """
    from mgk_cli.progress import waiting
    from mgk_core.tools.verify_run import audit, audit_weights

    with waiting("checking files", silent=as_json):
        found = audit(run)
        if weights and found.sound:
            audit_weights(found, without=without, base=base)
    if as_json:
        import attrs

        from mgk_cli.listing import print_json

        rows = [attrs.asdict(f) for f in found.findings]
        print_json(
            [
                {
                    "run": str(run),
                    "sound": found.sound,
                    "checked": found.checked,
                    "weights": found.weights,
                    "findings": rows,
                }
            ]
        )
    else:
        _draw(found, asked=weights)
    return 0 if found.sound else DIFFERS


def _draw(found: object, *, asked: bool) -> None:
    from mgk_cli.console import line
    from mgk_cli.formatting import digest, several
    from mgk_core.tools.verify_run import Audit

    assert isinstance(found, Audit)  # noqa: S101 - imported late, so that --help does not need torch
    wrong = [f for f in found.findings if not f.harmless]
    for finding in [*wrong, *(f for f in found.findings if f.harmless)]:
        line(
            f"{'note' if finding.harmless else 'error'}: {found.run / finding.path}: {finding.what}"
        )
    if wrong:
        line(
            f"{several(len(wrong), 'error')} in {several(found.checked, 'check')}; first: {wrong[0].path}"
        )
        if asked and found.weights is None:
            line("weights not rebuilt: fix the files first")
        return
    line(
        f"{several(found.checked, 'check')} passed: every file is unchanged and the journal's chain is intact"
    )
    if found.weights is not None:
        line(
            f"weights rebuilt from the base: {digest(found.weights)}…, identical to the ledger"
        )

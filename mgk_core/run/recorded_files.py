"""Files that are on record must not change while plugins read them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from mgk_core.record.run_directory import CONFIG, LEDGER, RETENTION
from mgk_core.run.session import Session

_Stamp = tuple[int, int] | None


@contextmanager
def unchanged_by_plugins(session: Session) -> Iterator[None]:
    """Name the plugins whose `mgk_recorded` ran inside the block if a recorded file was written to.

    Sizes and times are compared; `mgk verify` compares digests.

    :raises PluginError: a file was changed or removed
    """
    before = _stamps(session)
    yield
    changed = [
        name
        for name, stamp in _stamps(session).items()
        if stamp != before.get(name, stamp)
    ]
    if changed:
        plugins = session.hooks.plugins
        called = plugins.call_order("mgk_recorded")
        suspects = [p for p in called if not plugins.is_own(p)] or called
        raise plugins.fault(
            suspects,
            "mgk_recorded",
            f"changed files that are on record: {', '.join(changed[:3])}; a plugin's own files belong"
            f" in ctx.files. 'mgk verify {session.run}' lists what is damaged",
        )


def _stamps(session: Session) -> dict[str, _Stamp]:
    ledger = session.ledger
    names = [CONFIG, LEDGER, RETENTION, *ledger.files]
    names += [name for entry in ledger.phases for name in entry.files]
    found: dict[str, _Stamp] = {}
    for name in names:
        path = session.run / name
        status = path.stat() if path.is_file() else None
        found[name] = (status.st_size, status.st_mtime_ns) if status else None
    return found

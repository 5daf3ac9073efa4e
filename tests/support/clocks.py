"""Clocks for templates that print a date: transformers' ``datetime`` is replaced by one of these."""

from __future__ import annotations

import datetime as dt


class Tomorrow(dt.datetime):
    """The clock of the next day."""

    @classmethod
    def now(cls, tz=None):
        """Return this time tomorrow."""
        return dt.datetime.now(tz) + dt.timedelta(days=1)

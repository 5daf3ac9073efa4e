"""The report of unfinished runs: served on the loopback interface, refreshed by server-sent events."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mgk_core.contract.errors import InputError
from mgk_report.page import render
from mgk_report.record import read

WATCHED = (
    "run.toml",
    "journal.jsonl",
    "ledger.json",
    "metrics.jsonl",
    "retention.json",
)
PAUSE = 1.0
"""Seconds between two reads of the files."""

QUIET = 15.0
"""Seconds after which a line is sent although nothing changed, so that a closed page is noticed."""


class Server(ThreadingHTTPServer):
    """Serves the page and a stream that signals when it is out of date."""

    daemon_threads = True

    def __init__(self, runs: Sequence[Path], port: int) -> None:
        self.runs = runs
        self.stopping = threading.Event()
        super().__init__(("127.0.0.1", port), Handler)

    def server_close(self) -> None:
        """End the streams, too."""
        self.stopping.set()
        super().server_close()

    def state(self) -> tuple[tuple[str, int, int], ...]:
        """Return name, size and time of every file that the page shows."""
        found = []
        for run in self.runs:
            for name in WATCHED:
                path = run / name
                try:
                    entry = path.stat()
                except OSError:
                    continue
                found.append((str(path), entry.st_size, entry.st_mtime_ns))
        return tuple(found)


class Handler(BaseHTTPRequestHandler):
    """Two addresses: the page at ``/`` and the stream at ``/events``."""

    server: Server

    def do_GET(self) -> None:
        """Answer one request."""
        if self.path == "/":
            self._page()
        elif self.path == "/events":
            self._stream()
        else:
            self.send_error(404)

    def _page(self) -> None:
        try:
            text = render([read(run) for run in self.server.runs], live=True)
        except (InputError, OSError) as error:
            self.send_error(503, explain=str(error))
            return
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def _stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        shown, sent = self.server.state(), time.monotonic()
        try:
            while not self.server.stopping.wait(PAUSE):
                if self.server.state() != shown:
                    self.wfile.write(b"data: changed\n\n")
                    return
                if time.monotonic() - sent > QUIET:
                    self.wfile.write(b": still here\n\n")
                    sent = time.monotonic()
        except OSError:
            return  # the page was closed

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's name
        """Keep the terminal quiet."""


def serve(runs: Sequence[Path], port: int) -> Server:
    """Bind the server; the caller runs it.

    :raises InputError: a directory is not a run directory, or the port is taken
    """
    for run in runs:
        read(run)
    try:
        return Server(runs, port)
    except OSError as error:
        raise InputError(
            f"--port {port}: {error.strerror}; choose another, or 0 for any"
        ) from None

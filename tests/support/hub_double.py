"""A hub on this machine: the few addresses that an upload asks, and what was sent to them."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_of_the_double"


class Hub(ThreadingHTTPServer):
    """Keeps repositories in memory. files: repository → name → bytes, as committed."""

    daemon_threads = True

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.objects: dict[str, bytes] = {}
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), _Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, path = self.server, self._path()
        repository = path.removeprefix("/api/models/").removesuffix("/revision/main")
        if repository not in hub.private:
            self._answer(
                {"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"}
            )
            return
        self._answer(
            {
                "id": repository,
                "private": hub.private[repository],
                "sha": "0" * 40,
                "tags": [],
            }
        )

    def do_PUT(self) -> None:
        data = self._body()
        oid = self._path().rpartition("/")[2]
        assert hashlib.sha256(data).hexdigest() == oid
        self.server.objects[oid] = data
        self._answer({})

    def do_POST(self) -> None:
        hub, path, body = self.server, self._path(), self._body()
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer({"error": "Invalid username or password."}, 401)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(p for p in (asked.get("organization"), asked["name"]) if p)
            visible = asked.get(
                "visibility", "private" if asked.get("private") else "public"
            )
            hub.private[name] = visible == "private"
            self._answer({"url": f"{hub.address}/{name}", "name": name})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path.endswith("/preupload/main"):
            self._answer({"files": [self._mode(f) for f in json.loads(body)["files"]]})
        elif path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            self._answer(
                {"transfer": "basic", "objects": [self._place(o) for o in wanted]}
            )
        elif path.endswith("/commit/main"):
            repository = path.removeprefix("/api/models/").removesuffix("/commit/main")
            lines = [json.loads(line) for line in body.splitlines()]
            hub.files.setdefault(repository, {}).update(
                self._content(line) for line in lines if line["key"] != "header"
            )
            oid = "1" * 40
            self._answer(
                {
                    "commitUrl": f"{hub.address}/{repository}/commit/{oid}",
                    "commitOid": oid,
                }
            )
        else:
            self._answer({"error": f"no such address {path}"}, 404)

    def _mode(self, file: dict) -> dict:
        large = file["path"].endswith((".safetensors", ".model"))
        return {
            "path": file["path"],
            "uploadMode": "lfs" if large else "regular",
            "shouldIgnore": False,
        }

    def _place(self, wanted: dict) -> dict:
        href = f"{self.server.address}/objects/{wanted['oid']}"
        return {**wanted, "actions": {"upload": {"href": href, "header": {}}}}

    def _content(self, line: dict) -> tuple[str, bytes]:
        value = line["value"]
        if line["key"] == "lfsFile":
            return value["path"], self.server.objects[value["oid"]]
        return value["path"], base64.b64decode(value["content"])

    def _path(self) -> str:
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        return path

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(
        self, what: dict, status: int = 200, headers: dict | None = None
    ) -> None:
        body = json.dumps(what).encode()
        self.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            **(headers or {}),
        }.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Keep the tests quiet."""

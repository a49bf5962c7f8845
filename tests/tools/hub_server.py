"""A hub on this machine: as much of the Hugging Face protocol as fetching a snapshot needs, over real HTTP."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """Serves folders as repositories. `cut` ends a file's answer after so many bytes, once per entry."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Path]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        self.cut: dict[str, int] = {}
        self.served: list[tuple[str, int]] = []  # file, first byte

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/[^/]+|/tree/[^/]+)?", path):
            name = match[1]
            if name not in self.server.repositories:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
            elif "/tree/" in path:
                self._send(200, json.dumps(self._tree(name)).encode(), {}, body)
            else:
                siblings = [{"rfilename": entry["path"]} for entry in self._tree(name)]
                told = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": []}
                self._send(200, json.dumps(told).encode(), {}, body)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/[^/]+/((?s:.+))", path):
            self._file(self.server.repositories[match[1]] / match[2], match[2], body)
        else:
            self._send(404, b"{}", {}, body)

    def _tree(self, name: str) -> list[dict]:
        root = self.server.repositories[name]
        files = sorted(path for path in root.rglob("*") if path.is_file())
        return [
            {
                "type": "file",
                "path": path.relative_to(root).as_posix(),
                "size": path.stat().st_size,
                "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
            }
            for path in files
        ]

    def _file(self, path: Path, name: str, body: bool) -> None:
        content = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        status, first = 200, 0
        if wanted := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", "")):
            status, first = 206, int(wanted[1])
            headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
        if body:
            self.server.served.append((name, first))
        keep = self.server.cut.pop(name, None) if body else None
        self._send(status, content[first:], headers, body, keep)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool, keep: int | None = None) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[:keep])
        if keep is not None:
            self.close_connection = True


@contextmanager
def running(repositories: dict[str, Path]) -> Iterator[Hub]:
    hub = Hub(repositories)
    thread = threading.Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()

"""A model hub on this machine: what huggingface_hub asks of the real one, and its mishaps.

Answers `GET /api/models/ID[/revision/REV]` with names, sizes and hashes, and `GET
/ID/resolve/REV/PATH` with content, whole or from where `Range` says. As on the real hub large
files are handed over to another host, by a redirect to a signed address.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + 34 * "0"
LARGE = 10_000
"""Bytes from which on a file is in large file storage: hashed by SHA-256, served elsewhere."""


@dataclass
class Request:
    """One that came in; `sent` is how much content went out."""

    path: str
    range: str | None
    token: str | None
    sent: int = 0


@dataclass
class Hub:
    """The folder of one repository, and how to misbehave."""

    folder: Path
    repo: str = "someone/Paint-by-Example"
    url: str = ""
    requests: list[Request] = field(default_factory=list)
    cut_after: dict[str, int] = field(default_factory=dict)
    """Content after which the connection is cut, once for each path."""
    stall_after: dict[str, int] = field(default_factory=dict)
    """Content after which nothing more comes, once for each path."""
    corrupt: set[str] = field(default_factory=set)
    """Paths whose last byte is wrong."""
    refuse: tuple[int, str] | None = None
    """Status and X-Error-Code of the answer to everything."""
    refuse_content: tuple[int, str] | None = None
    """The same for content only."""
    stalled: threading.Event = field(default_factory=threading.Event)
    over: threading.Event = field(default_factory=threading.Event)

    def paths(self) -> list[str]:
        """Of the files in the repository."""
        files = (path for path in self.folder.rglob("*") if path.is_file())
        return sorted(path.relative_to(self.folder).as_posix() for path in files)

    def content(self, path: str) -> list[Request]:
        """The requests for a file that were answered with some of it."""
        return [r for r in self.requests if r.path == path and r.sent]

    def info(self) -> dict[str, Any]:
        """What the hub says of the repository when asked with `blobs=true`."""
        siblings = []
        for path in self.paths():
            data = (self.folder / path).read_bytes()
            entry: dict[str, Any] = {
                "rfilename": path,
                "size": len(data),
                "blobId": hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest(),
            }
            if len(data) >= LARGE:
                sha256 = hashlib.sha256(data).hexdigest()
                pointer = f"oid sha256:{sha256}".encode()
                entry["blobId"] = hashlib.sha1(pointer).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": len(pointer)}
            siblings.append(entry)
        return {"id": self.repo, "modelId": self.repo, "sha": COMMIT, "siblings": siblings}


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """The hub on free local ports; `hub.url` is its address."""
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub)) for _ in range(2)]
    hub.url, storage = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        server.storage = storage  # type: ignore[attr-defined]
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield hub
    finally:
        hub.over.set()
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            api, files = f"/api/models/{hub.repo}", f"/{hub.repo}/resolve/{COMMIT}/"
            request = Request(
                path.removeprefix(files).removeprefix("/storage/"),
                self.headers["Range"],
                self.headers["Authorization"],
            )
            hub.requests.append(request)
            if hub.refuse:
                self._refuse(*hub.refuse)
            elif path.startswith("/api/"):
                if path in (api, f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
                    assert url.query.lower() == "blobs=true", url.query  # True before 1.0
                    self._answer(200, json.dumps(hub.info()).encode())
                elif path.startswith(api):
                    self._refuse(404, "RevisionNotFound")
                else:
                    self._refuse(401, "RepoNotFound")
            elif hub.refuse_content:
                self._refuse(*hub.refuse_content)
            elif request.path not in hub.paths():
                self._refuse(404, "EntryNotFound")
            elif path.startswith(files) and (hub.folder / request.path).stat().st_size >= LARGE:
                storage = self.server.storage  # type: ignore[attr-defined]
                self._answer(302, Location=f"{storage}/storage/{request.path}?signature=1")
            else:
                self._send(request)

        def _send(self, request: Request) -> None:
            path = request.path
            data = (hub.folder / path).read_bytes()
            if path in hub.corrupt:
                data = data[:-1] + bytes([data[-1] ^ 1])
            start = int(request.range.removeprefix("bytes=").rstrip("-")) if request.range else 0
            stop = len(data)
            self.send_response(206 if request.range else 200)
            self.send_header("Content-Length", str(stop - start))
            self.send_header("Accept-Ranges", "bytes")
            if request.range:
                self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{stop}")
            self.end_headers()
            cut, stall = hub.cut_after.pop(path, None), hub.stall_after.pop(path, None)
            end = min(x for x in (stop, cut, stall) if x is not None)
            self.wfile.write(data[start:end])
            self.wfile.flush()
            request.sent = end - start
            if stall is not None:
                hub.stalled.set()
                hub.over.wait()
            self.close_connection = end < stop

        def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _refuse(self, status: int, code: str) -> None:
            self._answer(status, X_Error_Code=code)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing on the terminal."""

    return Handler

"""A hub on 127.0.0.1: as much of the Hugging Face hub's HTTP interface as a download touches."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

LARGE = (".safetensors", ".bin", ".model")
"""Files that a repository keeps in LFS, so that their ETag is their sha256."""


@dataclass
class Hub:
    """One repository in folders by commit, and what the hub does wrong with it."""

    repo: str
    commits: dict[str, Path]
    branches: dict[str, str]
    url: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    """Method, path and Range header of each request."""
    gated: int | None = None
    """Status with which a gated repository answers: 401 or 403."""
    broken: set[str] = field(default_factory=set)
    """Files whose next transfer breaks off in the middle."""
    changed: dict[str, bytes] = field(default_factory=dict)
    """Content that is sent in place of a file's own."""
    sizes: dict[str, int] = field(default_factory=dict)
    """Sizes that the listing states in place of the true ones."""

    def fetched(self) -> set[str]:
        """Names of the files of which any content was asked for."""
        return {
            Path(path).name
            for method, path, _ in self.requests
            if method == "GET" and ("/resolve/" in path or path.startswith("/lfs/"))
        }

    def ranges(self, file: str) -> list[str | None]:
        """The Range header of each request for a file's content; None where it had none."""
        return [
            wanted
            for method, path, wanted in self.requests
            if method == "GET" and path.startswith("/lfs/") and path.endswith(file)
        ]

    def commit_of(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


@contextmanager
def serve(hub: Hub) -> Iterator[Hub]:
    """Run the hub; its address is `hub.url`."""
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append((self.command, path, self.headers.get("Range")))
        listing = re.fullmatch(r"/api/models/(.+?/.+?)(?:/revision/(.+))?", path)
        file = re.fullmatch(r"/(.+?/.+?)/resolve/(.+?)/(.+)", path)
        large = re.fullmatch(r"/lfs/([0-9a-f]+)/(.+)", path)
        if large:
            self._send_content(*large.groups())
        elif match := listing or file:
            self._answer(match[1], match[2] or "main", match[3] if file else None)
        else:
            self._fail(404, "EntryNotFound")

    def _answer(self, repo: str, revision: str, file: str | None) -> None:
        commit = self.hub.commit_of(revision)
        if repo != self.hub.repo:
            # The real hub does not tell an anonymous reader whether a repository exists.
            self._fail(401, "RepoNotFound")
        elif self.hub.gated:
            self._fail(self.hub.gated, "GatedRepo")
        elif commit is None:
            self._fail(404, "RevisionNotFound")
        elif file is None:
            self._send_listing(commit)
        elif not (self.hub.commits[commit] / file).is_file():
            self._fail(404, "EntryNotFound", {"X-Repo-Commit": commit})
        elif file.endswith(LARGE):
            self._redirect(commit, file)
        else:
            self._send_content(commit, file)

    def _send_listing(self, commit: str) -> None:
        siblings = []
        for path in sorted(self.hub.commits[commit].iterdir()):
            size = self.hub.sizes.get(path.name, path.stat().st_size)
            entry = {"rfilename": path.name, "size": size, "blobId": _etag(path)[:40]}
            if path.name.endswith(LARGE):
                entry["lfs"] = {"sha256": _etag(path), "size": size, "pointerSize": 135}
            siblings.append(entry)
        body = json.dumps({"id": self.hub.repo, "sha": commit, "siblings": siblings}).encode()
        self._send(200, {"Content-Type": "application/json"}, body)

    def _redirect(self, commit: str, file: str) -> None:
        path = self.hub.commits[commit] / file
        headers = {
            "Location": f"{self.hub.url}/lfs/{commit}/{file}",
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{_etag(path)}"',
            "X-Linked-Size": str(path.stat().st_size),
        }
        self._send(302, headers, b"")

    def _send_content(self, commit: str, file: str) -> None:
        path = self.hub.commits[commit] / file
        content = self.hub.changed.get(file, path.read_bytes())
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(path)}"', "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            self._send(200, headers, content, file)
            return
        first, last = int(wanted[1]), min(int(wanted[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._send(206, headers, content[first : last + 1], file)

    def _fail(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._send(status, {"X-Error-Code": code, **(headers or {})}, b"")

    def _send(self, status: int, headers: dict[str, str], body: bytes, file: str = "") -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if file in self.hub.broken:
            self.hub.broken.discard(file)
            self.close_connection = True
            body = body[: len(body) // 2]
        self.wfile.write(body)


def _etag(path: Path) -> str:
    content = path.read_bytes()
    if path.name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()

"""A hub on loopback: as much of the Hugging Face hub as its client asks for, and faults on demand.

Small files come from the hub itself; large ones (LFS) from a second server, as from its CDN.
"""

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from llmasos_jax.errors import HubError

LARGE = (".safetensors", ".gguf", ".bin")
TOKEN = "hf_right"


def git_sha1(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


@dataclass
class Repo:
    """A repository at one commit; `large` names files that are in LFS besides weights."""

    files: dict[str, bytes]
    commit: str = "c" * 40
    is_gated: bool = False
    revisions: tuple[str, ...] = ("main",)
    large: tuple[str, ...] = ()

    def etag(self, name: str) -> str:
        data = self.files[name]
        return hashlib.sha256(data).hexdigest() if self.is_large(name) else git_sha1(data)

    def is_large(self, name: str) -> bool:
        return name.endswith(LARGE) or name in self.large

    def info(self, repo: str) -> dict:
        def sibling(name: str) -> dict:
            size = len(self.files[name])
            entry = {"rfilename": name, "size": size, "blobId": git_sha1(self.files[name])}
            if self.is_large(name):
                entry["lfs"] = {"sha256": self.etag(name), "size": size, "pointerSize": 130}
            return entry

        siblings = [sibling(name) for name in self.files]
        return {"id": repo, "sha": self.commit, "siblings": siblings, "tags": [],
                "private": False, "gated": "manual" if self.is_gated else False}  # fmt: skip


@dataclass
class LoopbackHub:
    """What it serves, what it breaks, and what it was asked.

    Attributes:
      repos: "org/name" -> repository.
      instead: file name -> the bytes that are sent for it.
      stop_after: file name -> bytes of it that are ever sent; then the connection is closed.
      stop_once: the same, but for the first connection alone.
      status: of every answer, None for the right one.
      asked: (method, path, Range, Authorization) of every request.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    instead: dict[str, bytes] = field(default_factory=dict)
    stop_after: dict[str, int] = field(default_factory=dict)
    stop_once: dict[str, int] = field(default_factory=dict)
    status: int | None = None
    asked: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)
    address: str = ""
    cdn: str = ""

    def ranges(self) -> list[str | None]:
        """The ranges asked of the CDN, in order."""
        return [a[2] for a in self.asked if a[0] == "GET" and a[1].startswith("/cdn/")]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *_):
        pass

    def do_HEAD(self):  # noqa: N802
        self._answer()

    def do_GET(self):  # noqa: N802
        self._answer()

    def _answer(self):
        hub, url = self.hub, urllib.parse.urlparse(self.path)
        authorization = self.headers.get("Authorization")
        hub.asked.append((self.command, url.path, self.headers.get("Range"), authorization))
        parts = urllib.parse.unquote(url.path).strip("/").split("/")
        if hub.status is not None:
            self._send(hub.status)
        elif parts[0] == "cdn":
            self._body(hub.repos["/".join(parts[1:3])], "/".join(parts[3:]), {})
        elif parts[:2] == ["api", "models"]:
            self._info("/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main")
        else:
            self._file("/".join(parts[:2]), parts[3], "/".join(parts[4:]))

    def _refused(self, name: str, revision: str) -> bool:
        repo = self.hub.repos.get(name)
        if self.headers.get("Authorization") not in (None, f"Bearer {TOKEN}"):
            self._send(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None:  # as the real one: to the unknown, what may be private is not there
            self._send(401, {"X-Error-Code": "RepoNotFound"})
        elif revision not in (*repo.revisions, repo.commit):
            self._send(404, {"X-Error-Code": "RevisionNotFound"})
        else:
            return False
        return True

    def _info(self, name: str, revision: str) -> None:
        if not self._refused(name, revision):
            self._send(200, {}, json.dumps(self.hub.repos[name].info(name)).encode())

    def _file(self, name: str, revision: str, file: str) -> None:
        if self._refused(name, revision):
            return
        repo = self.hub.repos[name]
        if repo.is_gated and not self.headers.get("Authorization"):
            self._send(401, {"X-Error-Code": "GatedRepo"})
        elif file not in repo.files:
            self._send(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": repo.commit})
        elif repo.is_large(file):
            linked = {"X-Linked-Etag": f'"{repo.etag(file)}"', "X-Repo-Commit": repo.commit,
                      "X-Linked-Size": str(len(repo.files[file])),
                      "Location": f"{self.hub.cdn}/cdn/{name}/{file}"}  # fmt: skip
            self._send(302, linked)
        else:
            headers = {"ETag": f'"{repo.etag(file)}"', "X-Repo-Commit": repo.commit}
            self._body(repo, file, headers)

    def _body(self, repo: Repo, file: str, headers: dict[str, str]) -> None:
        data = self.hub.instead.get(file, repo.files[file])
        asked = self.headers.get("Range")
        begin = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if begin:
            headers["Content-Range"] = f"bytes {begin}-{len(data) - 1}/{len(data)}"
        end = self.hub.stop_after.get(file, self.hub.stop_once.pop(file, len(data)))
        self._send(206 if begin else 200, headers, data[begin:], send=max(0, end - begin))

    def _send(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", send=None
    ) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[:send])
            if send is not None and send < len(body):
                self.close_connection = True


@contextlib.contextmanager
def loopback_hub(**repos: Repo) -> Iterator[LoopbackHub]:
    """A hub that serves `acme/<keyword>` until the block is left."""
    hub = LoopbackHub({f"acme/{name.replace('_', '-')}": repo for name, repo in repos.items()})
    handler = type("Handler", (_Handler,), {"hub": hub})
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler) for _ in range(2)]
    hub.address, hub.cdn = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def refuses(words, call, *args, error: type[Exception] = HubError):
    """The error's one line has these words."""
    with pytest.raises(error, match=words) as caught:
        call(*args)
    assert "\n" not in str(caught.value), caught.value
    return str(caught.value)

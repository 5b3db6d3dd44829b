"""A small stand-in for the Hugging Face hub: what its client asks for when it makes, writes and reads a repository.

Files whose contents are tensors go through Git LFS, as on the hub. Where the client would use Xet storage instead, that
is switched off.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

TOKEN = "hf_of_ada"


@dataclass
class Repository:
    """Commits, each with all of its files, the first one first."""

    private: bool = False
    commits: list[tuple[str, str, dict[str, bytes]]] = field(default_factory=list)  # oid, message, files

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        found = [c for c in self.commits if c[0] == revision] if revision != "main" else self.commits[-1:]
        return (found[0][0], found[0][2]) if found else None

    def commit(self, message: str, files: dict[str, bytes]) -> str:
        whole = {**(self.commits[-1][2] if self.commits else {}), **files}
        oid = hashlib.sha1(repr((len(self.commits), sorted(whole))).encode()).hexdigest()
        self.commits.append((oid, message, whole))
        return oid


@dataclass
class Hub:
    """What is on the hub, and what it was asked for."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # by LFS, by digest
    asked: list[str] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)  # told in place of the true ones
    endpoint: str = ""

    def files(self, repo: str) -> dict[str, bytes]:
        return self.repositories[repo].commits[-1][2]


@contextmanager
def hub_stand_in(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[Hub]:
    """Serve a hub, and lead the client of this process to it, with an empty cache."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
    template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        return

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def _read(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")
        found = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path.partition("?")[0])
        if found is None:
            return self._answer(200 if self.path == "/" else 404, b"{}")
        repo, revision, name = found.groups()
        repository = self.hub.repositories.get(repo)
        if repository is None or (repository.private and not self._may):
            return self._refuse(404 if self._may else 401, "RepoNotFound")
        if (at := repository.at(revision)) is None:
            return self._refuse(404, "RevisionNotFound")
        commit, files = at
        if name not in files:
            return self._refuse(404, "EntryNotFound", {"X-Repo-Commit": commit})
        etag = hashlib.sha256(files[name]).hexdigest()
        size = {"X-Linked-Size": str(self.hub.sizes[name])} if name in self.hub.sizes else {}
        self._answer(200, files[name], {"X-Repo-Commit": commit, "ETag": f'"{etag}"', **size})

    def do_POST(self) -> None:
        self.hub.asked.append(f"POST {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self._chunks()
        if self.path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if not self._may:
            return self._refuse(401, "")
        if self.path == "/api/repos/create":
            return self._create(json.loads(body))
        if self.path.endswith(".git/info/lfs/objects/batch"):
            return self._batch(json.loads(body))
        found = re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main", self.path)
        if found and found[2] == "preupload":
            return self._json({"files": [_mode(f["path"]) for f in json.loads(body)["files"]]})
        if found:
            return self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        self._answer(404, b"{}")

    def do_PUT(self) -> None:
        contents = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self._chunks()
        assert hashlib.sha256(contents).hexdigest() == self.path.rpartition("/")[2]
        self.hub.stored[self.path.rpartition("/")[2]] = contents
        self._answer(200, b"")

    def _create(self, asked: dict[str, Any]) -> None:
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repositories:
            return self._json(
                {"error": "You already created this model repo", "url": f"{self.hub.endpoint}/{repo}"}, 409
            )
        private = asked.get("visibility") == "private" or bool(asked.get("private"))
        self.hub.repositories[repo] = Repository(private)
        self._json({"url": f"{self.hub.endpoint}/{repo}", "name": repo, "id": repo})

    def _batch(self, asked: dict[str, Any]) -> None:
        place = lambda o: {"upload": {"href": f"{self.hub.endpoint}/lfs/{o['oid']}"}}  # noqa: E731
        objects = [{"oid": o["oid"], "size": o["size"], "actions": place(o)} for o in asked["objects"]]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, repo: str, lines: list[dict[str, Any]]) -> None:
        files: dict[str, bytes] = {}
        for line in lines[1:]:
            value = line["value"]
            lfs = line["key"] == "lfsFile"
            files[value["path"]] = self.hub.stored[value["oid"]] if lfs else base64.b64decode(value["content"])
        oid = self.hub.repositories[repo].commit(lines[0]["value"]["summary"], files)
        self._json({"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid})

    @property
    def _may(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _chunks(self) -> bytes:
        """A body that came in pieces."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return b""
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _json(self, content: dict[str, Any], status: int = 200) -> None:
        self._answer(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _refuse(self, status: int, code: str, headers: dict[str, str] | None = None) -> None:
        self._answer(status, b"", {"X-Error-Code": code, "X-Error-Message": code, **(headers or {})})

    def _answer(self, status: int, contents: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(contents)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(contents)


def _mode(path: str) -> dict[str, Any]:
    large = path.endswith((".safetensors", ".mtl", ".png"))
    return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": None}

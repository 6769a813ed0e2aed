"""A small Hugging Face Hub on loopback: the API routes that the real client asks for, over repositories in memory.

The client reads HF_ENDPOINT when it is imported, so what uses it runs in a process of its own:
``on_hub(function, *arguments)``.
"""

import hashlib
import json
import multiprocessing
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

LARGE = (".parquet", ".safetensors")  # kinds of files that are in large file storage
_API = re.compile(
    r"/api/(?P<kind>datasets|models)/(?P<repo>[^/]+/[^/]+)(?:/(?P<what>revision|tree|paths-info)/(?P<rest>.*))?"
)
_RESOLVE = re.compile(r"/(?P<kind>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<rest>.*)")


@dataclass
class FakeHub:
    """``commits``: (kind, repository) → commit → path → bytes; ``refs``: (kind, repository) → branch → commit."""

    endpoint: str = ""
    commits: dict[tuple[str, str], dict[str, dict[str, bytes]]] = field(default_factory=dict)
    refs: dict[tuple[str, str], dict[str, str]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def commit(self, kind: str, repo: str, files: dict[str, bytes], branch: str = "main") -> str:
        """Make a commit with exactly these files the head of a branch. Returns its name."""
        content = json.dumps(
            [repo, branch, sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())]
        )
        name = hashlib.sha1(content.encode()).hexdigest()
        self.commits.setdefault((kind, repo), {})[name] = files
        self.refs.setdefault((kind, repo), {})[branch] = name
        return name


def _blob(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _entry(path: str, data: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(data), "oid": _blob(data)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
    return entry


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        self._answer(None)

    def do_HEAD(self) -> None:
        self._answer(None)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self._answer(json.loads(body) if body.startswith("{") else parse_qs(body))

    def _answer(self, body: Any) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        if match := _API.fullmatch(path):
            self._api(match["kind"].removesuffix("s"), match["repo"], match["what"], match["rest"] or "", body)
        elif match := _RESOLVE.fullmatch(path):
            self._file("dataset" if match["kind"] else "model", match["repo"], match["rest"])
        else:
            self._refuse("EntryNotFound")

    def _commit(self, kind: str, repo: str, rest: str) -> tuple[str, str] | None:
        """(commit, path) of ``revision/path``; answers with an error where there is no such thing."""
        commits = self.hub.commits.get((kind, repo))
        if commits is None:
            return self._refuse("RepoNotFound")
        refs = self.hub.refs[kind, repo] | {name: name for name in commits}
        for name, commit in refs.items():
            if rest == name or rest.startswith(name + "/"):
                return commit, rest[len(name) + 1 :]
        return self._refuse("RevisionNotFound")

    def _api(self, kind: str, repo: str, what: str | None, rest: str, body: Any) -> None:
        place = self._commit(kind, repo, rest if what else "main")
        if place is None:
            return
        commit, folder = place
        files = self.hub.commits[kind, repo][commit]
        if what == "tree":
            prefix = f"{folder}/" if folder else ""
            inside = {path: data for path, data in files.items() if path.startswith(prefix)}
            if not inside:
                return self._refuse("EntryNotFound")
            recursive = "recursive=true" in self.path.lower()
            names = {path[len(prefix) :].split("/")[0] for path in inside if "/" in path[len(prefix) :]}
            folders = {prefix + name for name in names}
            if recursive:
                folders = {path[:i] for path in inside for i, c in enumerate(path) if c == "/" and i > len(prefix)}
                chosen = inside
            else:
                chosen = {path: data for path, data in inside.items() if "/" not in path[len(prefix) :]}
            entries = [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in sorted(folders)]
            self._send(entries + [_entry(path, data) for path, data in sorted(chosen.items())])
        elif what == "paths-info":
            self._send([_entry(path, files[path]) for path in body["paths"] if path in files])
        else:
            self._send(
                {
                    "id": repo,
                    "sha": commit,
                    "private": False,
                    "downloads": 0,
                    "likes": 0,
                    "tags": [],
                    "siblings": [{"rfilename": path} for path in sorted(files)],
                }
            )

    def _file(self, kind: str, repo: str, rest: str) -> None:
        place = self._commit(kind, repo, rest)
        if place is None:
            return
        commit, path = place
        data = self.hub.commits[kind, repo][commit].get(path)
        if data is None:
            return self._refuse("EntryNotFound", {"X-Repo-Commit": commit})
        start, end = 0, len(data)
        if asked := self.headers.get("Range"):
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end = int(first), min(len(data), int(last) + 1 if last else len(data))
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_blob(data)}"', "Accept-Ranges": "bytes"}
        if asked:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        self._reply(206 if asked else 200, data[start:end], "application/octet-stream", headers)

    def _refuse(self, code: str, headers: dict[str, str] | None = None) -> None:
        self._reply(404, b"{}", "application/json", {"X-Error-Code": code, **(headers or {})})

    def _send(self, value: Any) -> None:
        self._reply(200, json.dumps(value).encode(), "application/json", {})

    def _reply(self, status: int, data: bytes, kind: str, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield hub
    server.shutdown()


OnHub = Callable[..., Any]
"""Calls a function with arguments in the client's process; returns its result or raises its exception."""


@pytest.fixture(scope="module")
def on_hub(hub: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnHub]:
    yield from client(hub.endpoint, tmp_path_factory)


def client(endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnHub]:
    """A fresh process with the real client, its endpoint and empty caches."""
    folder = tmp_path_factory.mktemp("client")
    variables = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "hf"),
        "BITLM_CACHE": str(folder / "cache"),
        "HF_HUB_DISABLE_XET": "1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        patch.delenv("HF_HUB_OFFLINE", raising=False)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            pool.submit(int).result()  # started, with these variables
            yield lambda function, *arguments: pool.submit(function, *arguments).result(timeout=120)

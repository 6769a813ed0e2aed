"""An S3 server of one's own (moto's) behind a proxy that can refuse, delay or lose what passes through it.

Import the fixture by name: ``from s3 import s3_root`` or ``from s3 import s3``.
"""

import contextlib
import http.client
import itertools
import logging
import random
import secrets
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from moto.server import ThreadedMotoServer

from bitlm import storage

PASSING = ("503 SlowDown", "500 InternalError", "drop", "cut", "lose")


@dataclass
class S3:
    """``root`` is an empty place in a bucket; ``faults`` are asked in turn about each request that comes."""

    root: str
    faults: list[Callable[[str, str], str | None]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    closed: bool = False

    def fail(self, method: str, part: str, how: str, times: int = 10**9) -> None:
        """Treat requests of ``method`` whose path holds ``part``: answer an S3 error such as ``"503 SlowDown"``,
        ``"drop"`` the connection, pass the request on but ``"lose"`` its answer, or ``"cut"`` the answer in two."""
        left = [times]

        def fault(asked: str, path: str) -> str | None:
            if asked != method or part not in path or not left[0]:
                return None
            left[0] -= 1
            return how

        self.faults.append(fault)

    def disturb(self, share: float, seed: int = 0) -> Counter[str]:
        """Treat about this share of all requests badly, in each passing way in turn; returns what was done, counted."""
        chance, ways, done = random.Random(seed), itertools.cycle(PASSING), Counter[str]()

        def fault(_asked: str, _path: str) -> str | None:
            if chance.random() >= share:
                return None
            how = next(ways)
            done[how] += 1
            return how

        self.faults.append(fault)
        return done


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms until its head is acknowledged

    def _pass(self) -> None:
        s3 = self.server.s3
        s3.requests.append((self.command, self.path))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        how = next((how for fault in s3.faults if (how := fault(self.command, self.path))), None)
        if how == "drop" or s3.closed:
            self.close_connection = True
            return
        if how and how[0].isdigit():
            status, code = how.split()
            self._answer(int(status), {}, f"<Error><Code>{code}</Code><Message>injected</Message></Error>".encode())
            return
        with self.server.exclusive if "If-None-Match" in self.headers else contextlib.nullcontext():
            status, headers, data = self._forward(body)
        if how == "lose":
            self.close_connection = True
            return
        self._answer(status, headers, data, cut=how == "cut")

    def _forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(*self.server.upstream, timeout=20)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, dict(answer.getheaders()), data

    def _answer(self, status: int, headers: dict[str, str], data: bytes, cut: bool = False) -> None:
        self.send_response_only(status)
        length = headers.get("Content-Length", str(len(data))) if self.command == "HEAD" else str(len(data))
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                self.send_header(name, value)
        self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = self.close_connection or cut

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="session")
def _moto() -> Iterator[tuple[str, int]]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server.get_host_and_port()
    server.stop()


@pytest.fixture
def s3(
    _moto: tuple[str, int], monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[S3]:
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    bucket = f"bucket-{secrets.token_hex(4)}"
    proxy.s3, proxy.upstream = S3(f"s3://{bucket}/root"), _moto
    proxy.exclusive = threading.Lock()  # the server itself looks and writes in two steps
    threading.Thread(target=proxy.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("BITLM_CACHE", str(tmp_path_factory.mktemp("cache")))
    storage.filesystem(f"s3://{bucket}")[0].mkdir(bucket)
    proxy.s3.requests.clear()
    yield proxy.s3
    proxy.s3.closed = True  # a part of an upload that was given up may still be on its way
    proxy.shutdown()
    proxy.server_close()


@pytest.fixture
def s3_root(s3: S3) -> str:
    return s3.root

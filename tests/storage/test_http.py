"""Files of an HTTP server, read by the real client (aiohttp), and what that raises where the server fails."""

import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from bitlm import storage
from bitlm.errors import SourceError
from bitlm.storage.requests import NotFoundError

DATA = b"0123456789" * 10


class Handler(BaseHTTPRequestHandler):
    """A path says how it is answered: the names of headers to send, or what goes wrong."""

    headers_of: dict[str, str]

    def do_GET(self) -> None:
        name = self.path.strip("/")
        if name.isdigit():
            self.send_response(int(name))
            self.end_headers()
        elif name == "drop":
            self.connection.shutdown(socket.SHUT_RDWR)
        else:
            self.send_response(200)
            self.send_header("Content-Length", str(len(DATA)))
            for header in name.split("+"):
                if header in self.headers_of:
                    self.send_header(header, self.headers_of[header])
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(DATA[:10] if name == "cut" else DATA)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    Handler.headers_of = {"ETag": '"abc"', "Last-Modified": "Wed, 01 Jan 2025 00:00:00 GMT"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture
def closed() -> Iterator[str]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitlm.storage.requests.time.sleep", lambda _: None)


def test_a_file_and_its_tag(server: str) -> None:
    assert storage.read_bytes(f"{server}/plain") == DATA
    assert storage.stat_tag(f"{server}/ETag+Last-Modified") == (100, "abc")
    assert storage.stat_tag(f"{server}/Last-Modified") == (100, "Wed, 01 Jan 2025 00:00:00 GMT")
    Handler.headers_of["Last-Modified"] = "Thu, 02 Jan 2025 00:00:00 GMT"
    assert storage.stat_tag(f"{server}/Last-Modified") == (100, "Thu, 02 Jan 2025 00:00:00 GMT")
    assert storage.find_tagged(f"{server}/ETag", ("etag",)).files == [("ETag", f"{server}/ETag", (100, "abc"))]


ASK: list[Callable[[str], Any]] = [storage.read_bytes, storage.stat_tag, lambda url: storage.find_tagged(url, ("",))]


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize("path", ["500", "503", "429", "drop"])
def test_a_server_that_fails(ask: Callable[[str], Any], path: str, server: str) -> None:
    with pytest.raises(
        SourceError, match=rf"/{path}: the store gave no answer, though asked 4 times .* and the URL"
    ) as error:
        ask(f"{server}/{path}")
    assert not isinstance(error.value, NotFoundError)


@pytest.mark.parametrize("ask", ASK)
def test_a_server_that_is_not_there(ask: Callable[[str], Any], closed: str) -> None:
    with pytest.raises(
        SourceError, match=r"/x: the store gave no answer, though asked 4 times .* and the URL"
    ) as error:
        ask(f"{closed}/x")
    assert not isinstance(error.value, NotFoundError)


@pytest.mark.parametrize("ask", ASK)
def test_a_server_that_refuses(ask: Callable[[str], Any], server: str) -> None:
    with pytest.raises(SourceError, match=r"/403: the request was refused \(403, .*check the URL and the credentials"):
        ask(f"{server}/403")


def test_an_answer_that_is_cut_off(server: str) -> None:
    with pytest.raises(SourceError, match=r"/cut: the store gave no answer, though asked 4 times"):
        storage.read_bytes(f"{server}/cut")


def test_a_file_that_is_not_there(server: str) -> None:
    for ask in (storage.read_bytes, storage.stat_tag):
        with pytest.raises(NotFoundError, match="/404: there is no such file"):
            ask(f"{server}/404")
    assert storage.find_tagged(f"{server}/404", ("",)).files == []

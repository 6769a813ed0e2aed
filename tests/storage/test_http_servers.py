"""Files of servers that do less, or other, than they should: read rightly, or refused in one line."""

import gzip
import io
import re
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitlm import storage
from bitlm.data.sources.files import check_unchanged, find_files
from bitlm.data.sources.rows import read_rows
from bitlm.errors import SourceError
from bitlm.storage import http
from bitlm.storage.content import content_tag


class Handler(BaseHTTPRequestHandler):
    """``/WORD+WORD/NAME``: the words say what the server does, ``files`` what it has."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes]
    times: dict[str, float]
    requests: list[tuple[str, str, str | None]]

    def do_GET(self) -> None:
        words, _, name = self.path.split("?")[0].strip("/").partition("/")
        does = words.split("+")
        self.requests.append((self.command, self.path, self.headers.get("Range")))
        data, code = self.files.get(name, b""), 200
        headers = {"Content-Length": str(len(data))} | self._validators(does, name, data)
        if "redirect" in does:
            code, data, headers = 302, b"", {"Location": f"/ranges+etag/{name}", "Content-Length": "0"}
        elif "round" in does or "elsewhere" in does:
            place = self.path if "round" in does else "ftp://example.invalid/x"
            code, data, headers = 302, b"", {"Location": place, "Content-Length": "0"}
        elif words.isdigit():
            code, data, headers = int(words), b"", {"Content-Length": "0"}
        elif "nohead" in does and self.command == "HEAD":
            code, data, headers = 405, b"", {"Content-Length": "0"}
        elif "stall" in does:
            threading.Event().wait(1.5)
        elif "ranges" in does and (part := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            code, data, headers = self._part(does, data, part, headers)
        if "encoded" in does:
            data = gzip.compress(data)
            headers |= {"Content-Encoding": "gzip", "Content-Length": str(len(data))}
        if "stored" in does:
            headers |= {"Content-Encoding": "gzip"}
        self._answer(does, code, headers, data)

    def _validators(self, does: list[str], name: str, data: bytes) -> dict[str, str]:
        mark = sha256(data).hexdigest()[:20]
        all_ = {
            "etag": {"ETag": f'"{mark}"'},
            "weak": {"ETag": f'W/"{mark}"'},
            "modified": {"Last-Modified": formatdate(self.times.get(name, 0), usegmt=True)},
            "claims": {"Accept-Ranges": "bytes"},
        }
        return {key: value for word in does for key, value in all_.get(word, {}).items()}

    def _part(
        self, does: list[str], data: bytes, part: re.Match[str], headers: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        start, end = int(part[1]), min(len(data), int(part[2] or len(data)) + 1)
        if start >= len(data):
            return 416, b"", {"Content-Range": f"bytes */{len(data)}", "Content-Length": "0"}
        if "shifted" in does and start:
            start, end = start - 1, end - 1
        if "short" in does:
            end = max(start + 1, end - 7)
        total = "*" if "unknown" in does else len(data)
        headers |= {"Content-Range": f"bytes {start}-{end - 1}/{total}", "Content-Length": str(end - start)}
        return 206, data[start:end], headers

    def _answer(self, does: list[str], code: int, headers: dict[str, str], data: bytes) -> None:
        if "chunked" in does:
            headers = {key: value for key, value in headers.items() if key != "Content-Length"}
            headers["Transfer-Encoding"] = "chunked"
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data) if data else b"0\r\n\r\n"
        if "endless" in does:  # the end of the connection is that of the file
            headers = {key: value for key, value in headers.items() if key != "Content-Length"}
            self.close_connection = True
        self.send_response(code)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            try:
                self.wfile.write(data[: len(data) // 2] if "stops" in does else data)
            except ConnectionError:  # the client has seen enough
                self.close_connection = True
        self.close_connection = self.close_connection or "stops" in does

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def parquet() -> bytes:
    sink = io.BytesIO()
    numbers = range(40_000)
    pq.write_table(pa.table({"text": [f"{i} {i**9} {i**11}" for i in numbers]}), sink, row_group_size=10_000)
    assert sink.tell() > 2**20, "a longer one than those that are hashed whole"
    return sink.getvalue()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # a client that has seen enough resets the connection
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.fixture
def server(address: str, parquet: bytes, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    lines = b"".join(b'{"text": "%d %d"}\n' % (i, i**9) for i in range(150_000))
    assert len(lines) > 4 * 2**20, "longer than what is asked for at a time"
    Handler.files = {"t.parquet": parquet, "t.jsonl": lines, "t.jsonl.gz": gzip.compress(lines, 1), "empty.jsonl": b""}
    Handler.times, Handler.requests = {}, []
    monkeypatch.setattr("bitlm.storage.requests.time.sleep", lambda _: None)
    monkeypatch.setenv("BITLM_CACHE", str(tmp_path / "cache"))
    return address


READABLE = [
    "ranges+etag",
    "ranges+weak",
    "ranges+modified",
    "ranges",
    "ranges+nohead+etag",
    "ranges+unknown",
    "ranges+chunked+etag",
    "redirect",
    "etag+claims",
    "modified",
    "plain",
    "chunked",
    "chunked+etag",
    "endless",
]


def texts_of(url: str) -> list[str | None]:
    [file] = find_files(url).files
    return [row.text for rows in read_rows(file.url, file.format, "text", None) for row in rows]


@pytest.mark.parametrize("does", READABLE)
def test_rows_are_those_of_the_file(does: str, server: str) -> None:
    assert texts_of(f"{server}/{does}/t.parquet") == [f"{i} {i**9} {i**11}" for i in range(40_000)]
    if does in ("ranges+etag", "etag+claims", "chunked"):
        for name in ("t.jsonl", "t.jsonl.gz"):
            assert texts_of(f"{server}/{does}/{name}") == [f"{i} {i**9}" for i in range(150_000)]


@pytest.mark.parametrize("does", READABLE)
def test_another_content_of_the_same_size_is_a_change(does: str, server: str, tmp_path: Path) -> None:
    url = f"{server}/{does}/t.parquet?download=1"
    [file] = find_files(url).files
    check_unchanged(file)
    assert (file.path, file.bytes, file.url) == ("t.parquet", len(Handler.files["t.parquet"]), url)
    if not {"etag", "weak", "modified", "redirect"} & set(does.split("+")):
        (tmp_path / "t.parquet").write_bytes(Handler.files["t.parquet"])
        assert file.etag == content_tag(str(tmp_path / "t.parquet")), "the tag of the same file on this machine"
    Handler.files["t.parquet"] = Handler.files["t.parquet"][:-20] + bytes(12) + Handler.files["t.parquet"][-8:]
    Handler.times["t.parquet"] = 1e9
    with pytest.raises(SourceError, match=r"t\.parquet\?… changed since the corpus was made"):
        check_unchanged(file)


def test_a_part_of_a_file_is_asked_for_where_the_server_sends_it(server: str) -> None:
    url = f"{server}/ranges+etag/t.parquet"
    [file] = find_files(url).files
    Handler.requests.clear()
    assert len(list(read_rows(url, "parquet", "text", None, range(1, 2)))) > 0
    assert all(asked for _, _, asked in Handler.requests)
    assert storage.stat_tag(url) == (file.bytes, file.etag)


def test_an_empty_file(server: str) -> None:
    for does in ("ranges", "ranges+etag", "plain", "chunked"):
        url = f"{server}/{does}/empty.jsonl"
        assert storage.stat_tag(url).bytes == 0
        with storage.open_read(url, 1000) as file:
            assert file.read() == b""


REFUSED = {
    "encoded": r"the server compresses it \(Content-Encoding: gzip\) though asked not to; fetch the file and give its",
    "ranges+encoded": r"the server compresses it",
    "ranges+shifted": r"the server does not send the part of the file that was asked for; fetch the file and give its",
    "ranges+short": r"the server does not send the part of the file that was asked for",
    "stops": r"the store gave no answer, though asked 4 times",
    "ranges+stops+etag": r"the store gave no answer, though asked 4 times",
    "chunked+stops": r"the store gave no answer, though asked 4 times",
    "round": r"the request failed \(TooManyRedirects",
    "elsewhere": r"the request (was refused|failed)",
    "401": r"the request was refused \(401",
    "403": r"the request was refused \(403",
    "405": r"the request was refused \(405",
    "404": "there is no such file",
    "410": "there is no such file",
}


@pytest.mark.parametrize("does", REFUSED)
@pytest.mark.parametrize("name", ["t.parquet", "t.jsonl"])
def test_a_refusal_is_one_line_without_the_query(does: str, name: str, server: str) -> None:
    with pytest.raises(SourceError, match=REFUSED[does]) as error:
        texts_of(f"{server}/{does}/{name}?ticket=hunter2")
    assert "hunter2" not in str(error.value)
    assert f"/{does}/{name}?…" in str(error.value)
    assert len(str(error.value).splitlines()) == 1


def test_a_stored_gzip_that_the_server_calls_encoded(server: str) -> None:
    assert texts_of(f"{server}/stored/t.jsonl.gz") == [f"{i} {i**9}" for i in range(150_000)]


def test_a_file_replaced_while_it_is_read_is_told(server: str) -> None:
    for number, does in enumerate(("ranges+etag", "ranges+modified")):
        with storage.open_read(f"{server}/{does}/t.jsonl") as file:
            assert file.read(10) == Handler.files["t.jsonl"][:10]
            Handler.files["t.jsonl"] = bytes(len(Handler.files["t.jsonl"]))
            Handler.times["t.jsonl"] = 1e9 + number
            with pytest.raises(SourceError, match=r"t\.jsonl: it was replaced while it was being read; run again"):
                file.read(10)


def test_a_file_of_this_second_is_waited_for(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two contents within a second have the same Last-Modified."""
    pauses: list[float] = []

    def pass_time(seconds: float) -> None:
        pauses.append(seconds)
        Handler.times["t.jsonl"] = now - 5

    now = time.time()
    Handler.times["t.jsonl"] = now + 1
    monkeypatch.setattr("bitlm.storage.tags.time.sleep", pass_time)
    url = f"{server}/modified/t.jsonl"
    assert storage.stat_tag(url).etag == formatdate(now - 5, usegmt=True)
    assert pauses == [1]
    storage.stat_tag(url)
    assert pauses == [1]


def test_a_server_that_says_nothing_more(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "TIMEOUT_SECONDS", 0.1)
    http.HttpFiles.clear_instance_cache()
    try:
        with pytest.raises(SourceError, match="the store gave no answer, though asked 4 times"):
            find_files(f"{server}/stall/t.parquet")
    finally:
        http.HttpFiles.clear_instance_cache()


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("/ranges/*.parquet", "an HTTP server has no listing; give the URL of one file"),
        ("/ranges/", "an HTTP server has no listing; give the URL of one file"),
        ("", "an HTTP server has no listing; give the URL of one file"),
        ("/ranges/t.csv", r"none of the 1 files there is usable \(1 \.csv\)"),
        ("/ranges/t", r"none of the 1 files there is usable \(1 no ending\)"),
    ],
)
def test_a_url_that_is_not_that_of_a_file(url: str, told: str, server: str) -> None:
    with pytest.raises(SourceError, match=told):
        find_files(server + url)


@pytest.mark.parametrize(
    "url", ["http://", "http:///t.parquet", "http://host:99999/t.parquet", "http://[::1/t.parquet"]
)
def test_a_url_that_cannot_be_used(url: str) -> None:
    with pytest.raises(SourceError, match=r"is not a usable URL|an HTTP server has no listing"):
        find_files(url)

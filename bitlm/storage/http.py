"""Files of an HTTP server. A request for the first byte tells whether there is a file, its size, what identifies its
content, and whether the server sends ranges. (HEAD is refused by some servers, and for signed URLs.)"""

import contextlib
import re
import tempfile
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from typing import Any, BinaryIO
from urllib.parse import urlsplit

from aiohttp import ClientResponse, ClientTimeout
from fsspec.asyn import sync
from fsspec.implementations.http import HTTPFileSystem
from fsspec.spec import AbstractBufferedFile

from bitlm.errors import SourceError
from bitlm.storage.requests import redact

TIMEOUT_SECONDS = 10  # to connect, and between two pieces of an answer
PIECE_BYTES = 2**20
VALIDATORS = ("ETag", "Digest", "Last-Modified")
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class HttpFiles(HTTPFileSystem):
    """What a URL gives is taken as it is stored: a server may not compress it for the way."""

    def __init__(self, **options: Any) -> None:
        client = {
            "timeout": ClientTimeout(total=None, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS),
            "headers": {"Accept-Encoding": "identity"},
            "auto_decompress": False,
        }
        super().__init__(client_kwargs=client, **options)

    async def _info(self, url: str, **_: Any) -> dict[str, Any]:
        """``size`` is None where the server does not tell it. ``ranges``: whether it sends a part of the file.
        ``settled``: whether a later change of the file is sure to change ``Last-Modified``, which counts seconds."""
        async with self._get(url, (0, 1)) as response:
            headers, part = response.headers, _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            ranges = response.status == 206 and part is not None and part[1] == "0" and part[3] != "*"
            if response.status == 416:  # an empty file has no first byte
                size: int | None = 0
            elif response.status == 206:
                size = int(part[3]) if ranges and part else None
            else:
                size = response.content_length
            validators = {name: headers[name] for name in VALIDATORS if headers.get(name)}
            settled = not _is_younger(headers.get("Last-Modified"), headers.get("Date"))
            return {"name": url, "type": "file", "size": size, "ranges": ranges, "settled": settled} | validators

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        if start is None and end is None:
            async with self._get(url) as response:
                return await response.read()
        if start == end:
            return b""
        return await self._read_range(url, start or 0, end, None)

    async def _read_range(self, url: str, start: int, end: int | None, known: dict[str, Any] | None) -> bytes:
        """Raises SourceError if the answer is another part, or that of a file which has changed since it was
        ``known``."""
        async with self._get(url, (start, end)) as response:
            if known is not None and any(response.headers.get(key) not in (None, known.get(key)) for key in VALIDATORS):
                raise SourceError(f"{redact(url)}: it was replaced while it was being read; run again")
            part = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
            if response.status == 206 and part is not None and int(part[1]) == start:
                data = await response.read()
                if start + len(data) == int(part[2]) + 1 and end in (None, start + len(data)):
                    return data
        raise SourceError(
            f"{redact(url)}: the server does not send the part of the file that was asked for; fetch the file and give "
            "its path"
        )

    def _open(self, path: str, mode: str = "rb", **_: Any) -> "BinaryIO | _RangesFile":
        """A file that asks for ranges, or a local copy without a name where the server sends none."""
        info = self.info(path)
        if info["ranges"]:
            return _RangesFile(self, path, info)
        with contextlib.ExitStack() as stack:
            copy = stack.enter_context(tempfile.TemporaryFile())
            sync(self.loop, self._fetch, path, copy)
            copy.seek(0)
            stack.pop_all()  # the caller closes it
            return copy

    async def _fetch(self, url: str, file: BinaryIO) -> None:
        async with self._get(url) as response:
            async for piece in response.content.iter_chunked(PIECE_BYTES):
                file.write(piece)

    def read_range(self, url: str, start: int, end: int, known: dict[str, Any]) -> bytes:
        return sync(self.loop, self._read_range, url, start, end, known)

    @contextlib.asynccontextmanager
    async def _get(self, url: str, part: tuple[int, int | None] | None = None) -> AsyncIterator[ClientResponse]:
        """The answer: a file or a part of one. Raises the client's errors, and SourceError for a compressed one."""
        session = await self.set_session()
        ranged = {} if part is None else {"Range": f"bytes={part[0]}-{'' if part[1] is None else part[1] - 1}"}
        async with session.get(self.encode_url(url), headers=ranged) as response:
            if response.status in (404, 410):
                raise FileNotFoundError(url)
            if response.status != 416:
                response.raise_for_status()
            encoding = response.headers.get("Content-Encoding", "identity").lower()
            stored = encoding in ("gzip", "x-gzip") and urlsplit(url).path.lower().endswith(".gz")
            if encoding not in ("", "identity") and not stored:
                raise SourceError(
                    f"{redact(url)}: the server compresses it (Content-Encoding: {encoding}) though asked not to; "
                    "fetch the file and give its path"
                )
            yield response


class _RangesFile(AbstractBufferedFile):
    """Each read is one request."""

    def __init__(self, fs: HttpFiles, url: str, info: dict[str, Any]) -> None:
        super().__init__(fs, url, "rb", cache_type="none", size=info["size"])
        self._known = info

    def _fetch_range(self, start: int, end: int) -> bytes:
        return self.fs.read_range(self.path, start, min(end, self.size), self._known)


def _is_younger(modified: str | None, now: str | None) -> bool:
    """Whether a file was modified in the second of the answer."""
    try:
        return bool(modified and now) and parsedate_to_datetime(modified) >= parsedate_to_datetime(now)
    except ValueError:
        return False

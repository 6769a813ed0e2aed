"""A remote file, opened for reading, whose requests are retried after transient errors."""

import io
from typing import Any

from bitlm.storage.requests import request


class RemoteFile(io.RawIOBase):
    """``file`` is an fsspec file without a cache of its own, so each read of it is one request.

    A read returns fewer bytes than asked for only at the end. SourceError is raised if the file was replaced while it
    was read and the store tells so by its ETags.
    """

    def __init__(self, url: str, file: Any) -> None:
        self._url, self._file = url, file
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = memoryview(buffer).cast("B")
        data = request(self._url, self._read, len(wanted)) if len(wanted) else b""
        wanted[: len(data)] = data
        self._position += len(data)
        return len(data)

    def readall(self) -> bytes:
        return self.read(max(0, self._file.size - self._position))

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _read(self, length: int) -> bytes:
        """From our own position, whatever a failed request did to that of the file."""
        self._file.seek(min(self._position, self._file.size))
        return self._file.read(length)

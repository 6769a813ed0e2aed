"""One request to a store: made again while the fault is a passing one, else told in one line with the remedy."""

import contextlib
import errno
import random
import re
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from bitlm.errors import SourceError

ATTEMPTS = 4
_URL_PARTS = re.compile(r"(?P<scheme>\w+://)(?:[^/\s@]*@)?(?P<rest>[^?\s]*)(?P<query>\?\S*)?")
_PASSING_CODES = {
    "SlowDown",
    "RequestTimeout",
    "ConditionalRequestConflict",
    "OperationAborted",
    "Throttling",
    "RequestLimitExceeded",
}
_PASSING_ERRNO = {errno.EBUSY, errno.EREMOTEIO, errno.ECONNRESET, errno.ETIMEDOUT}
_CREDENTIALS = "check the credentials in the environment (AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"


class AbsentError(SourceError):
    """There is nothing at the URL."""


def redact(text: str) -> str:
    """``text`` without the user information and the query of any URL in it."""
    return _URL_PARTS.sub(lambda m: m["scheme"] + m["rest"] + ("?…" if m["query"] else ""), text)


def ask(url: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """``call(*args, **kwargs)``; on a remote store again a few times, with growing, random pauses, while the fault is a
    passing one (a timeout, a lost connection, "slow down", an answer of 5xx). Raises as ``told`` does."""
    with told(url):
        for attempt in range(1, ATTEMPTS):
            try:
                return call(*args, **kwargs)
            except (OSError, *_client_errors()) as error:
                if "://" not in url or not _passing(error):
                    raise
                time.sleep(random.uniform(0.1, 0.25 * 2**attempt))
        return call(*args, **kwargs)


@contextlib.contextmanager
def told(url: str) -> Iterator[None]:
    """Turn an answer of the operating system or of the store into a SourceError that names the URL and the remedy
    (``AbsentError`` where there is nothing). What has no such reading, "exists already" among it, passes as it is."""
    try:
        yield
    except (OSError, *_client_errors()) as error:
        reading = _reading(error, url)
        if reading is None:
            raise
        kind = AbsentError if isinstance(error, FileNotFoundError) and _code(error) != "NoSuchBucket" else SourceError
        raise kind(f"{redact(url)}: {reading}") from error


def refused_as_existing(error: OSError) -> bool:
    """Whether an exclusive create was refused because the object is there already."""
    return isinstance(error, FileExistsError) or _code(error) in ("PreconditionFailed", "412")


def _client_errors() -> tuple[type[Exception], ...]:
    """The faults of the S3 client; none as long as it has not been imported (it is slow to import)."""
    if "botocore" not in sys.modules:
        return ()
    from aiohttp import ClientError as HttpError
    from botocore.exceptions import BotoCoreError, ClientError

    return BotoCoreError, ClientError, HttpError


def _answer(error: BaseException) -> dict[str, Any]:
    """The store's own answer, which s3fs keeps as the cause of the error it raises."""
    for one in (error, error.__cause__, error.__context__):
        if isinstance(answer := getattr(one, "response", None), dict):
            return answer
    return {}


def _code(error: BaseException) -> str:
    return _answer(error).get("Error", {}).get("Code", "")


def _passing(error: Exception) -> bool:
    if isinstance(error, TimeoutError | ConnectionError) or getattr(error, "errno", None) in _PASSING_ERRNO:
        return True
    status = _answer(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return _code(error) in _PASSING_CODES or status == 429 or status >= 500 or _lost_connection(error)


def _lost_connection(error: Exception) -> bool:
    if isinstance(error, OSError) or "botocore" not in sys.modules:
        return False
    from aiohttp import ClientConnectionError, ClientPayloadError
    from botocore.exceptions import ConnectionError as NoConnection
    from botocore.exceptions import HTTPClientError

    return isinstance(error, NoConnection | HTTPClientError | ClientConnectionError | ClientPayloadError)


def _reading(error: Exception, url: str) -> str | None:
    remote = "://" in url
    name = type(error).__name__
    if _code(error) == "NoSuchBucket":
        return "the bucket does not exist; create it or correct the URL"
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if name == "FileExpired":
        return "it was replaced while it was being read; run again"
    if name in ("NoCredentialsError", "PartialCredentialsError"):
        return f"no credentials for the store; {_CREDENTIALS}"
    if isinstance(error, PermissionError) or _code(error) in ("AccessDenied", "403"):
        advice = f"{_CREDENTIALS} and the bucket's policy" if remote else "check its owner and mode"
        return f"access denied; {advice}"
    if isinstance(error, NotADirectoryError | IsADirectoryError):
        return "a file is where a folder is expected, or the reverse; correct the path"
    if getattr(error, "errno", None) == errno.EROFS:
        return "the file system is read-only; choose another path"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the device; free some and run again"
    if remote and _passing(error):
        asked = f"the store gave no answer, though asked {ATTEMPTS} times ({redact(str(error))})"
        return f"{asked}; check the network and AWS_ENDPOINT_URL"
    return None

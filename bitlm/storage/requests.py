"""One request to a store: retried after transient errors, any other error explained in one line with the remedy."""

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
# \b and the possessive ++: a long word that begins no URL is read once, not once from each of its letters.
_URL_PARTS = re.compile(r"(?P<scheme>\b\w++://)(?:[^/\s?#]*@)?(?P<rest>[^?\s]*)(?P<query>\?\S*)?")
_TRANSIENT_CODES = {
    "SlowDown",
    "RequestTimeout",
    "ConditionalRequestConflict",
    "OperationAborted",
    "Throttling",
    "RequestLimitExceeded",
}
_TRANSIENT_ERRNO = {errno.EBUSY, errno.EREMOTEIO, errno.ECONNRESET, errno.ETIMEDOUT}
_ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "s3a": "AWS_ENDPOINT_URL", "hf": "HF_ENDPOINT"}
_CREDENTIALS = "check the credentials in the environment (AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"


class NotFoundError(SourceError):
    """There is nothing at the URL."""


def redact(text: str) -> str:
    """``text`` without the user information and the query of any URL in it."""
    return _URL_PARTS.sub(lambda m: m["scheme"] + m["rest"] + ("?…" if m["query"] else ""), text)


def request(url: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Return ``call(*args, **kwargs)``. On a remote store a transient error (timeout, lost connection, "slow down", a
    5xx response) is retried a few times with growing, random pauses. Raises as ``translate_errors`` does."""
    with translate_errors(url):
        for attempt in range(1, ATTEMPTS):
            try:
                return call(*args, **kwargs)
            except (OSError, *_client_errors()) as error:
                if "://" not in url or not _is_transient(_first_error(error)):
                    raise
                time.sleep(random.uniform(0.1, 0.25 * 2**attempt))
        return call(*args, **kwargs)


@contextlib.contextmanager
def translate_errors(url: str) -> Iterator[None]:
    """Raise errors of the operating system and of the store's client as a SourceError that names the URL and the
    remedy (``NotFoundError`` if the file does not exist). Errors with no such explanation pass unchanged, among them
    "already exists"."""
    try:
        yield
    except (OSError, *_client_errors()) as error:
        first = _first_error(error)
        explanation = _explain(first, url)
        if explanation is None:
            raise
        kind = NotFoundError if isinstance(first, FileNotFoundError) and _code(first) != "NoSuchBucket" else SourceError
        raise kind(f"{redact(url)}: {explanation}") from error


def already_exists(error: OSError) -> bool:
    """Whether an exclusive create was refused because the object is there already."""
    return isinstance(error, FileExistsError) or _code(error) in ("PreconditionFailed", "412")


def _client_errors() -> tuple[type[Exception], ...]:
    """The base classes of what the stores' clients raise, of those clients that are imported (they are slow to)."""
    errors: list[type[Exception]] = []
    if "botocore" in sys.modules:
        from botocore.exceptions import BotoCoreError, ClientError

        errors += [BotoCoreError, ClientError]
    if "aiohttp" in sys.modules:  # of s3:// and http://
        from aiohttp import ClientError as HttpClientError

        errors.append(HttpClientError)
    if "huggingface_hub.errors" in sys.modules:  # of hf://
        from huggingface_hub.errors import HTTPError

        errors.append(HTTPError)
    return tuple(errors)


def _first_error(error: Exception) -> Exception:
    """The error itself, or the cause of a "file not found" which says that the server failed or cannot be reached:
    fsspec asks an HTTP server for a file's size and takes every fault for "not found"."""
    cause = error.__cause__
    if not isinstance(error, FileNotFoundError) or not isinstance(cause, _client_errors()) or _response(cause):
        return error  # also if an S3 store said so itself
    return error if _status(cause) == 404 else cause


def _response(error: BaseException) -> dict[str, Any]:
    """The store's own response, which s3fs keeps in the cause of the error that it raises."""
    for each in (error, error.__cause__, error.__context__):
        response = getattr(each, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _code(error: BaseException) -> str:
    return _response(error).get("Error", {}).get("Code", "")


def _is_transient(error: Exception) -> bool:
    if isinstance(error, TimeoutError | ConnectionError) or getattr(error, "errno", None) in _TRANSIENT_ERRNO:
        return True
    status = _status(error)
    return _code(error) in _TRANSIENT_CODES or status == 429 or status >= 500 or _is_connection_error(error)


def _status(error: Exception) -> int:
    """The HTTP status of the response, 0 if there was none: as botocore, aiohttp and the Hub's client hold it."""
    status = _response(error).get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status or getattr(error, "status", 0) or getattr(getattr(error, "response", None), "status_code", 0)


def _is_connection_error(error: Exception) -> bool:
    """Whether there was no response at all, or only a part of one."""
    if "botocore" in sys.modules:
        from botocore.exceptions import ConnectionError as NoConnection
        from botocore.exceptions import HTTPClientError

        if isinstance(error, NoConnection | HTTPClientError):
            return True
    if "aiohttp" in sys.modules:
        from aiohttp import ClientConnectionError, ClientPayloadError

        if isinstance(error, ClientConnectionError | ClientPayloadError):
            return True
    if "huggingface_hub.errors" in sys.modules:
        from huggingface_hub.errors import HTTPError

        return isinstance(error, HTTPError) and getattr(error, "response", None) is None
    return False


def _explain(error: Exception, url: str) -> str | None:
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
    if getattr(error, "errno", None) in (errno.ENAMETOOLONG, errno.ELOOP):
        return "the path is too long, or a link in it leads to itself; choose another path"
    if getattr(error, "errno", None) == errno.EROFS:
        return "the file system is read-only; choose another path"
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the device; free some and run again"
    if remote and _is_transient(error):
        asked = f"the store gave no answer, though asked {ATTEMPTS} times ({redact(str(error))})"
        endpoint = _ENDPOINTS.get(url.split("://")[0], "the URL")
        return f"{asked}; check the network and {endpoint}"
    if remote and _status(error) and not already_exists(error):
        return f"the request was refused ({redact(str(error)).splitlines()[0]}); check the URL and the credentials"
    if remote and isinstance(error, _client_errors()) and not already_exists(error):
        return f"the request failed ({name}: {redact(str(error)).splitlines()[0]}); check the URL"
    return None

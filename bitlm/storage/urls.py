"""URLs of the project: a plain local path, or any fsspec URL (``s3://…``, ``memory://…``).

Endpoint and credentials come from the environment alone (AWS_ENDPOINT_URL, AWS_PROFILE, …).
"""

import os
import re
from typing import Any
from urllib.parse import unquote, urlsplit

import fsspec
from fsspec.implementations.local import LocalFileSystem

from bitlm.errors import SourceError
from bitlm.storage.requests import ATTEMPTS, redact

_BUCKET = re.compile(r"[\w.\-]+|arn:.+", re.ASCII)


def join(url: str, *parts: str) -> str:
    base = url if url.endswith("://") or url == "/" else url.rstrip("/")
    return "/".join(([base.removesuffix("/")] if base else []) + [part.strip("/") for part in parts if part])


def is_inside(path: str) -> bool:
    """Whether a relative POSIX path names something below its folder, whatever the folder is."""
    return "\0" not in path and not any(part in ("", ".", "..") for part in path.split("/"))


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def local_path(url: str) -> str:
    """The absolute path of a local URL. In one that begins with ``file://``, ``%20`` stands for a space."""
    assert is_local(url), url
    if url.startswith("file://"):
        url = unquote(url.removeprefix("file://").removeprefix("localhost"))
    return os.path.abspath(os.path.expanduser(url))


def file_name(url: str) -> str:
    """The last part of a path or URL; of an HTTP URL without its query."""
    return (urlsplit(url).path if is_http(url) else url).rpartition("/")[2]


def cache_root() -> str:
    """The folder below which copies and notes of this machine are kept: BITLM_CACHE, or ~/.cache/bitlm."""
    return os.path.abspath(os.environ.get("BITLM_CACHE") or os.path.expanduser("~/.cache/bitlm"))


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it. Cheap: there is one instance for each process.

    Raises SourceError for a URL that cannot be used.
    """
    if is_local(url):
        return LocalFileSystem(auto_mkdir=True), local_path(url)
    if is_http(url):
        from bitlm.storage.http import HttpFiles  # slow to import

        _check_http(url)
        return HttpFiles(use_listings_cache=False), url
    protocol = url.split("://", 1)[0]
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in ("s3", "s3a"):
        # botocore repeats each single request, parts of a multipart upload included. With the endpoint among the
        # options an instance for another endpoint is never taken from the cache.
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        options |= {
            "endpoint_url": endpoint,
            "config_kwargs": {"retries": {"mode": "standard", "total_max_attempts": ATTEMPTS}},
        }
    try:
        fs, path = fsspec.url_to_fs(url, **options)
    except (ValueError, ImportError) as error:
        raise SourceError(f"{redact(url)}: {error}") from error
    if protocol in ("s3", "s3a"):
        if not _BUCKET.fullmatch(path.split("/")[0]):
            raise SourceError(f"{redact(url)} names no bucket: give s3://BUCKET/PATH")
        fs.retries = 1  # the repetition is botocore's and ours
    return fs, path


def _check_http(url: str) -> None:
    try:
        parts = urlsplit(url)
        if parts.hostname and parts.port != 0:  # a port that is none raises
            return
        problem = "it names no host"
    except ValueError as error:
        problem = str(error)
    raise SourceError(f"{redact(url)} is not a usable URL: {problem}")

"""URLs of the project: a plain local path, or any fsspec URL (``s3://…``, ``memory://…``).

Endpoint and credentials come from the environment alone (AWS_ENDPOINT_URL, AWS_PROFILE, …).
"""

import os
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from bitlm.errors import SourceError
from bitlm.storage.requests import ATTEMPTS, redact


def join(url: str, *parts: str) -> str:
    base = url if url.endswith("://") or url == "/" else url.rstrip("/")
    return "/".join(([base.removesuffix("/")] if base else []) + [part.strip("/") for part in parts if part])


def is_inside(path: str) -> bool:
    """Whether a relative POSIX path names something below its folder, whatever the folder is."""
    return "\0" not in path and not any(part in ("", ".", "..") for part in path.split("/"))


def is_local(url: str) -> bool:
    return "://" not in url or url.startswith("file://")


def local_path(url: str) -> str:
    """The absolute path of a local URL."""
    assert is_local(url), url
    return os.path.abspath(os.path.expanduser(url.removeprefix("file://")))


def cache_root() -> str:
    """The folder below which copies and notes of this machine are kept: BITLM_CACHE, or ~/.cache/bitlm."""
    return os.path.abspath(os.environ.get("BITLM_CACHE") or os.path.expanduser("~/.cache/bitlm"))


def filesystem(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it. Cheap: there is one instance for each process."""
    if is_local(url):
        return LocalFileSystem(auto_mkdir=True), local_path(url)
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
        fs.retries = 1  # the repetition is botocore's and ours
    return fs, path

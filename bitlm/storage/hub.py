"""The Hugging Face Hub. Every request to it is made here, or inside ``translate_errors`` where another library makes
it, so that the errors of its client become a SourceError with a remedy in one place."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    HTTPError,  # the base class of the HTTP library that the client is built on, whichever that is
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile

from bitlm.config.stages import HUB
from bitlm.errors import SourceError

TIMEOUT_SECONDS = 20
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubRepo:
    """A repository ``OWNER/NAME``, with the settings that error messages name: the one that holds the repository, and
    the one that holds its revision."""

    name: str
    kind: Literal["dataset", "model"]
    source_setting: str
    revision_setting: str


class HubFile(NamedTuple):
    """``path`` is relative to the repository. ``digest`` depends on the content alone: the sha256 of a file in large
    file storage, the git blob id of a small one."""

    path: str
    bytes: int
    digest: str


def resolve_commit(repo: HubRepo, revision: str | None) -> str:
    """The commit of a branch, tag or commit, by default of the default branch. A full commit needs no request.

    Raises SourceError.
    """
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    with translate_errors(repo, f"revision {revision or 'main'}"):
        info = HfApi().repo_info(repo.name, repo_type=repo.kind, revision=revision, timeout=TIMEOUT_SECONDS)
    assert info.sha is not None, "the Hub names a commit for every revision"
    return info.sha


def list_files(repo: HubRepo, commit: str, folder: str = "") -> list[HubFile]:
    """All files below a folder of the repository at a commit, sorted by path: one request for 1,000 files.

    Raises SourceError, also for a folder that does not exist.
    """
    with translate_errors(repo, f"the list of files of {_named(folder, commit)}"):
        entries = HfApi().list_repo_tree(
            repo.name, folder or None, recursive=True, revision=commit, repo_type=repo.kind
        )
        return sorted(HubFile(e.path, e.size, _digest(e)) for e in entries if isinstance(e, RepoFile))


def stat_file(repo: HubRepo, commit: str, path: str) -> HubFile:
    """Size and digest of one file. Raises SourceError."""
    with translate_errors(repo, _named(path, commit)):
        entries = HfApi().get_paths_info(repo.name, path, revision=commit, repo_type=repo.kind)
    if not entries:
        raise SourceError(f"{HUB}{repo.name} has no {_named(path, commit)}: correct {repo.source_setting}")
    return HubFile(path, entries[0].size, _digest(entries[0]))


def download_file(repo: HubRepo, commit: str, path: str) -> Path:
    """A local copy of one file, in the Hub client's own cache. Raises SourceError."""
    with translate_errors(repo, _named(path, commit)):
        return Path(hf_hub_download(repo.name, path, repo_type=repo.kind, revision=commit))


def read_if_exists(repo: HubRepo, commit: str, path: str) -> bytes | None:
    """The bytes of one file, None if there is none at this commit. Raises SourceError."""
    with translate_errors(repo, _named(path, commit)):
        try:
            return Path(hf_hub_download(repo.name, path, repo_type=repo.kind, revision=commit)).read_bytes()
        except RemoteEntryNotFoundError:
            return None


def download_snapshot(repo: HubRepo, commit: str, patterns: Sequence[str]) -> Path:
    """A local folder with the files that match one of the patterns, in the Hub client's own cache. Raises
    SourceError."""
    with translate_errors(repo, f"commit {commit[:12]}"):
        folder = snapshot_download(repo.name, repo_type=repo.kind, revision=commit, allow_patterns=list(patterns))
    return Path(folder)


@contextmanager
def translate_errors(repo: HubRepo, wanted: str) -> Iterator[None]:
    """Raise the errors of the Hub's client as a SourceError that says what was wanted and what to do."""
    try:
        yield
    except (HTTPError, HFValidationError, OSError) as error:
        raise SourceError(f"{HUB}{repo.name}: {_explain(error, repo, wanted)}") from error


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n", 1)[0] or type(error).__name__


def _explain(error: Exception, repo: HubRepo, wanted: str) -> str:
    if isinstance(error, HFValidationError):
        return f"this is not the name of a repository: set {repo.source_setting} to {HUB}OWNER/NAME"
    if isinstance(error, GatedRepoError):
        return f"access must be granted first: ask for it on the page of the {repo.kind}, and set HF_TOKEN"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"there is no such {repo.kind}, or it is private: correct {repo.source_setting}, or set HF_TOKEN to a "
            "token that may read it"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{wanted} does not exist: correct {repo.revision_setting}"
    if isinstance(error, RemoteEntryNotFoundError):
        return f"{wanted} does not exist: correct {repo.source_setting} or {repo.revision_setting}"
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client's message is about its cache; the cause is the failed request
    return (
        f"{wanted} cannot be fetched ({first_line(error)}): check the network (and HF_ENDPOINT, HF_HUB_OFFLINE), or "
        f"set {repo.source_setting} to the path of a local copy"
    )


def _named(path: str, commit: str) -> str:
    return f"{path or 'the repository'} at commit {commit[:12]}"


def _digest(entry: RepoFile) -> str:
    return f"git:{entry.blob_id}" if entry.lfs is None else f"sha256:{entry.lfs.sha256}"

"""Hub datasets: which files make up which split of a configuration, as the library ``datasets`` resolves them.

Only its resolution of patterns is used: its loaders would fall back to whatever revision is in their cache. A commit
never changes, so what a commit resolves to is remembered in the cache folder.
"""

import difflib
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from huggingface_hub import DatasetCard
from yaml import YAMLError

from bitlm import storage
from bitlm.config.stages import HUB
from bitlm.data.sources.files import SUFFIXES, SourceFile, format_of, usable_files
from bitlm.errors import SourceError
from bitlm.storage import hub
from bitlm.storage.hub import HubFile, HubRepo

if TYPE_CHECKING:
    from datasets.utils.metadata import MetadataConfigs

EXPORT_REVISION = "refs/convert/parquet"  # where the Hub keeps a parquet copy of a dataset that has another form
README = "README.md"
MEMORY_FORMAT = 2  # of what is remembered in the cache folder
MOST_SHOWN = 12  # configurations that an error lists
# CONFIGURATION/SPLIT/0000.parquet, the only layout of the Hub's own parquet copies.
_EXPORTED = re.compile(r"(?P<config>[^/]+)/(?P<split>[^/]+)/\d{4}\.parquet")


def dataset_files(repo: HubRepo, revision: str | None, subset: str | None) -> list[SourceFile]:
    """The parquet and jsonl files of a configuration (by default the dataset's default one), each with its split,
    sorted by path. Without a revision, the Hub's own parquet copy stands in for a dataset that has no such files.

    Raises SourceError if there are no such files, no such configuration, or several and no default.
    """
    commit = hub.resolve_commit(repo, revision)
    files = _files_at(repo, commit, subset)
    if not files and revision is None:
        commit = hub.resolve_commit(repo, EXPORT_REVISION)
        files = _files_at(repo, commit, subset)
    if not files:
        raise SourceError(
            f"{HUB}{repo.name}: no file of it at commit {commit[:12]} ends in {', '.join(SUFFIXES)}; set "
            f"{repo.revision_setting} to {EXPORT_REVISION} for the Hub's own parquet copy"
        )
    return files


def _files_at(repo: HubRepo, commit: str, subset: str | None) -> list[SourceFile]:
    """The files at a commit, from memory if they have been resolved before; empty if none is usable."""
    key = hashlib.sha256(json.dumps([MEMORY_FORMAT, repo.name, commit, subset]).encode()).hexdigest()
    memory = storage.join(storage.cache_root(), "hub-files", f"{key[:32]}.json")
    remembered = storage.read_if_exists(memory)
    if remembered is not None:
        return [SourceFile.model_validate(file) for file in json.loads(remembered)]
    files = _resolve(repo, commit, subset)
    storage.write_atomic(memory, json.dumps([file.model_dump(mode="json") for file in files]).encode())
    return files


def _resolve(repo: HubRepo, commit: str, subset: str | None) -> list[SourceFile]:
    configs = _declared_configs(repo, commit)
    if configs:
        with _translate(repo, commit):
            default = configs.get_default_config_name()
        name = _choose(repo, list(configs), subset, default)
        splits = _declared_splits(repo, commit, configs[name])
        folder = _common_folder([path for paths in splits.values() for path in paths])
        listed = {file.path: file for file in hub.list_files(repo, commit, folder)}
    else:
        listed = {file.path: file for file in hub.list_files(repo, commit)}
        usable = sorted(usable_files(listed))
        splits = _undeclared_splits(repo, commit, usable, subset) if usable else {}
    usable = usable_files(path for paths in splits.values() for path in paths)
    files = [
        _source_file(repo, commit, listed[path], split)
        for split, paths in splits.items()
        for path in paths
        if path in usable
    ]
    return sorted(files, key=lambda file: file.path)


def _source_file(repo: HubRepo, commit: str, file: HubFile, split: str) -> SourceFile:
    url = f"{_base(repo, commit)}/{file.path}"
    kind = format_of(file.path)
    return SourceFile(url=url, path=file.path, format=kind, bytes=file.bytes, etag=file.digest, split=split)


def _declared_configs(repo: HubRepo, commit: str) -> "MetadataConfigs | None":
    """Name → parameters of the configurations that the dataset's README declares, as ``datasets`` reads them; None
    without a README."""
    from datasets.utils.metadata import MetadataConfigs  # slow to import

    readme = hub.read_if_exists(repo, commit, README)
    if readme is None:
        return None
    with _translate(repo, commit):
        return MetadataConfigs.from_dataset_card_data(DatasetCard(readme.decode()).data)


def _declared_splits(repo: HubRepo, commit: str, config: dict[str, Any]) -> dict[str, list[str]]:
    """Split → paths of a declared configuration: its patterns, or by the names of the files in its folder."""
    from datasets.data_files import get_data_patterns, sanitize_patterns

    base = storage.join(_base(repo, commit), config.get("data_dir") or "")
    with _translate(repo, commit):
        declared = config.get("data_files")
        patterns = get_data_patterns(base) if declared is None else sanitize_patterns(declared)
    return _match(repo, commit, patterns, base)


def _undeclared_splits(repo: HubRepo, commit: str, paths: list[str], subset: str | None) -> dict[str, list[str]]:
    """Split → paths where the README declares nothing: folders of the Hub's parquet copy, else one configuration whose
    splits ``datasets`` tells from the names of files and folders."""
    from datasets.data_files import get_data_patterns

    exported = [_EXPORTED.fullmatch(path) for path in paths]
    if not all(exported):
        _choose(repo, ["default"], subset, "default")
        with _translate(repo, commit):
            patterns = get_data_patterns(_base(repo, commit))
        return _match(repo, commit, patterns, _base(repo, commit))
    name = _choose(repo, sorted({match["config"] for match in exported}), subset, None)
    splits: dict[str, list[str]] = {}
    for match in exported:
        if match["config"] == name:
            splits.setdefault(match["split"], []).append(match[0])
    partial = [split for split in splits if split.startswith("partial-")]
    if partial:
        raise SourceError(
            f"{HUB}{repo.name}: the Hub's parquet copy holds only a part of it ({partial[0]}): set "
            f"{repo.source_setting} to the path of a local copy"
        )
    return splits


def _match(repo: HubRepo, commit: str, patterns: Any, base: str) -> dict[str, list[str]]:
    """Split → paths, relative to the repository, that its patterns match."""
    from datasets.data_files import DataFilesDict

    with _translate(repo, commit):
        urls = DataFilesDict.from_patterns(patterns, base_path=base)
    prefix = _base(repo, commit) + "/"
    return {str(split): [url.removeprefix(prefix) for url in matched] for split, matched in urls.items()}


def _choose(repo: HubRepo, names: list[str], subset: str | None, default: str | None) -> str:
    """The configuration that is meant. Raises SourceError naming all of them."""
    if subset is None and (default is not None or len(names) == 1):
        return default or names[0]
    if subset in names:
        return subset
    problem = "several configurations and no default" if subset is None else f"no configuration {subset!r}"
    shown = ", ".join(names[:MOST_SHOWN]) + (", …" if len(names) > MOST_SHOWN else "")
    nearest = difflib.get_close_matches(subset or "", names, n=1)
    hint = f"; the nearest is {nearest[0]!r}" if nearest else ""
    if repo.source_setting == "corpus.source":
        remedy = "correct corpus.subset"
    else:
        remedy = f"set {repo.source_setting} to the files of one of them, hf://datasets/{repo.name}@COMMIT/FOLDER"
    raise SourceError(f"{HUB}{repo.name} has {problem}{hint} (there are: {shown}): {remedy}")


@contextmanager
def _translate(repo: HubRepo, commit: str) -> Iterator[None]:
    """Raise as a SourceError what ``datasets`` says of a README or of names of files that it cannot use, and what the
    Hub's client raises below it."""
    try:
        with hub.translate_errors(repo, f"the files of a configuration at commit {commit[:12]}"):
            yield
    except (ValueError, TypeError, YAMLError) as error:
        raise SourceError(
            f"{HUB}{repo.name}: its README or the names of its files at commit {commit[:12]} are not usable "
            f"({hub.first_line(error)}): set {repo.revision_setting} to another commit"
        ) from error


def _base(repo: HubRepo, commit: str) -> str:
    return f"hf://datasets/{repo.name}@{commit}"


def _common_folder(paths: list[str]) -> str:
    return os.path.commonpath([os.path.dirname(path) for path in paths]) if paths else ""

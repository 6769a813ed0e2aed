"""Artifacts below one root: find, verify, make, commit. A complete artifact is never changed."""

import contextlib
import difflib
import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

from bitlm import storage
from bitlm.artifacts import publish
from bitlm.artifacts.ids import check_fingerprint, check_name, check_stage, is_stage, parse_folder, parse_id
from bitlm.artifacts.publish import map_in_threads
from bitlm.artifacts.record import (
    RECORD_FILE,
    SCHEMA_VERSION,
    Draft,
    FileEntry,
    InputEntry,
    Record,
    assert_plain,
    code_version,
    decode,
    fingerprint,
    packages,
    redacted,
    redacted_argv,
)
from bitlm.artifacts.roots import root_url
from bitlm.artifacts.work import BusyError, Work
from bitlm.errors import ArtifactError
from bitlm.storage import Digest
from bitlm.storage.cache import CacheFile, Copy, Share, open_cache
from bitlm.storage.requests import translate_errors
from bitlm.storage.verified import digest_once


class Store:
    """All artifacts below ``root``, a local folder or an fsspec URL. Holds nothing open; cheap to make."""

    def __init__(self, root: str) -> None:
        """Raises as ``root_url`` for what cannot be a root."""
        self.root = root_url(root)

    def url(self, artifact_id: str, *parts: str) -> str:
        """Where an artifact, or a file of it, is or would be. Raises ArtifactError for what would lie elsewhere."""
        parse_id(artifact_id)
        if parts and not storage.is_inside("/".join(parts)):
            raise ArtifactError(f"{artifact_id}: {'/'.join(parts)!r} is not a path inside the artifact's folder")
        return storage.join(self.root, artifact_id, *parts)

    def ids(self, stage: str | None = None, name: str | None = None) -> list[str]:
        """Ids of all version folders, the incomplete too, sorted by stage, name and version.

        Raises ArtifactError for what cannot be a stage or a name.
        """
        if stage is not None:
            check_stage(stage)
        if name is not None:
            check_name(name)
        versions = []
        stages = filter(is_stage, storage.list_folders(self.root)) if stage is None else [stage]
        for each in stages:
            for folder in storage.list_folders(storage.join(self.root, each)):
                parsed = parse_folder(folder)
                if parsed is not None and name in (None, parsed[0]):
                    versions.append((each, *parsed))
        return [f"{each}/{named}@v{version}" for each, named, version in sorted(versions)]

    def records(self, stage: str | None = None, name: str | None = None) -> list[Record]:
        """Records of the complete artifacts, sorted by stage, name, version. A damaged record raises ArtifactError."""
        return [record for record in map_in_threads(self._read, self.ids(stage, name)) if record is not None]

    def load(self, artifact_id: str) -> Record:
        """``stage/name@vN``, or ``stage/name`` for the newest. An unknown id raises ArtifactError with near ones."""
        parsed = parse_id(artifact_id)
        record = self.newest(parsed.stage, parsed.name) if parsed.version is None else self._read(artifact_id)
        if record is not None:
            return record
        ids = self.ids()
        if artifact_id in ids:
            raise ArtifactError(f"{artifact_id} is incomplete: it has no {RECORD_FILE}; make it again")
        near = difflib.get_close_matches(artifact_id, ids, n=3, cutoff=0.4)
        raise ArtifactError(
            f"there is no artifact {artifact_id} in {storage.redact(self.root)}"
            + (f"; near: {', '.join(near)}" if near else "")
        )

    def newest(self, stage: str, name: str) -> Record | None:
        for artifact_id in reversed(self.ids(stage, name)):
            if record := self._read(artifact_id):
                return record
        return None

    def find(self, stage: str, name: str, fingerprint: str) -> Record | None:
        """The newest artifact of this fingerprint."""
        for record in reversed(self.records(stage, name)):
            if record.fingerprint == fingerprint:
                return record
        return None

    def verify(self, record: Record, contents: bool = True) -> None:
        """Compare the artifact with its record, with ``contents`` also the bytes of each file.

        Raises ArtifactError, naming artifact and file, for a file that is missing, differs or is not in the record, and
        for a record that is missing or has changed.
        """
        if self._read(record.id) != record:
            raise ArtifactError(f"{record.id}: {RECORD_FILE} is missing or has changed")
        sizes = storage.list_sizes(self.url(record.id))
        recorded = {entry.path: entry for entry in record.files}
        for path in sorted({*sizes, *recorded} - {RECORD_FILE}):
            if path not in sizes:
                raise ArtifactError(
                    f"{record.id}: {path} is missing; restore it, or remove the artifact and make it again"
                )
            if path not in recorded:
                raise ArtifactError(f"{record.id}: {path} does not belong to it; remove the file")
            if sizes[path] != recorded[path].bytes:
                wrong = storage.describe_mismatch(Digest(sizes[path], ""), recorded[path].digest)
                raise ArtifactError(f"{record.id}: {path} {wrong}")
        if contents:
            map_in_threads(lambda entry: self._verify_file(record, entry), record.files)

    def hold(
        self, record: Record, paths: Sequence[str], share: Share | None = None, wait: bool = True
    ) -> list[Copy] | None:
        """Local copies of files, each verified before its first use in this process. They stay until each is released.

        Files of a local root are used where they are; those of a remote one are in the cache (``storage.cache``),
        whose ``hold`` says what ``share`` and ``wait`` mean and what None is.
        Raises ArtifactError, naming artifact and file, if one is missing or is not what the record says.
        """
        entries = [record.file(path) for path in paths]
        if storage.is_local(self.root):
            return [Copy(path) for path in map_in_threads(lambda entry: self._verified_path(record, entry), entries)]
        files = [
            CacheFile(cache_name(record, entry.path), self.url(record.id, entry.path), entry.digest)
            for entry in entries
        ]
        return open_cache().hold(files, share, wait)

    @contextlib.contextmanager
    def local_file(self, record: Record, path: str) -> Iterator[str]:
        """The path of a verified local copy, which stays during the context; raises as ``hold``.

        What is open or mapped at the end of the context can still be read.
        """
        with self._held(record, [path]) as copies:
            yield copies[0].path

    @contextlib.contextmanager
    def local_folder(self, record: Record, prefix: str) -> Iterator[str]:
        """A local folder with verified copies of all files below ``prefix``; they stay during the context, together.

        Raises as ``hold``.
        """
        prefix = prefix.rstrip("/")
        paths = [entry.path for entry in record.files if entry.path.startswith(f"{prefix}/")]
        if not paths:
            raise ArtifactError(f"{record.id} has no folder {prefix}")
        with self._held(record, paths) as copies:
            yield copies[0].path.removesuffix(paths[0]) + prefix

    def read_bytes(self, record: Record, path: str) -> bytes:
        """The verified contents of one file; raises as ``local_file``."""
        with self.local_file(record, path) as local:
            return Path(local).read_bytes()

    @contextlib.contextmanager
    def _held(self, record: Record, paths: Sequence[str]) -> Iterator[list[Copy]]:
        copies = self.hold(record, paths)
        assert copies is not None, "hold waits"
        try:
            yield copies
        finally:
            for copy in copies:
                copy.release()

    def begin(self, stage: str, name: str, fingerprint: str) -> Work:
        """Open the work on an artifact, new or left by a killed run. Raises BusyError, an ArtifactError that names
        the process, while another one has it open."""
        return Work(self._work_folder(stage, name, fingerprint), f"{stage}/{name} ({fingerprint[:8]})")

    def discard(self, record: Record) -> None:
        """Remove what a process that was killed right after the commit left of its work (local roots)."""
        folder = self._work_folder(record.stage, record.name, record.fingerprint)
        if storage.is_local(folder) and os.path.isdir(folder):
            with contextlib.suppress(BusyError):
                Work(folder, record.id).remove()

    def commit(self, work: Work, draft: Draft) -> Record:
        """Make all files below ``work.out`` the next version in one step, and remove the work.

        Versions of a name are numbered from 1. Raises ArtifactError if there are no files.
        """
        assert draft.fingerprint == fingerprint(
            draft.stage,
            draft.format,
            draft.identity,
            {role: record.fingerprint for role, record in draft.inputs.items()},
        ), "the fingerprint is not that of the draft"
        assert_plain(draft.metrics, "metrics")
        work.check()
        if storage.is_local(work.out):
            publish.prepare(work.out)
        paths = [path for path in storage.list_files(work.out) if path != RECORD_FILE]
        if not paths:
            raise ArtifactError(f"{draft.stage}/{draft.name}: nothing was written to {storage.redact(work.out)}")
        files = map_in_threads(lambda path: _entry(work, path), paths)
        ids = self.ids(draft.stage, draft.name)
        first = int(ids[-1].rpartition("@v")[2]) + 1 if ids else 1
        publisher = publish.local if storage.is_local(self.root) else publish.remote
        with translate_errors(self.root):
            key = f"{draft.stage}/{draft.name}"
            record = publisher(self.root, key, work, first, lambda version: _record(draft, version, files))
            work.remove()
        return record

    def _work_folder(self, stage: str, name: str, fingerprint: str) -> str:
        check_stage(stage)
        check_name(name)
        check_fingerprint(fingerprint)
        return storage.join(self.root, ".work", stage, f"{name}-{fingerprint[:16]}")

    def _read(self, artifact_id: str) -> Record | None:
        data = storage.read_if_exists(self.url(artifact_id, RECORD_FILE))
        return None if data is None else decode(data, artifact_id)

    def _verify_file(self, record: Record, entry: FileEntry) -> None:
        """Read the file and compare it with its entry."""
        _compare(record, entry, storage.sha256(self._existing_url(record, entry)))

    def _verified_path(self, record: Record, entry: FileEntry) -> str:
        """The path of a file of a local root, which is read unless this process did so before."""
        path = self._existing_url(record, entry)
        _compare(record, entry, digest_once(path))
        return path

    def _existing_url(self, record: Record, entry: FileEntry) -> str:
        url = self.url(record.id, entry.path)
        if not storage.exists(url):
            raise ArtifactError(
                f"{record.id}: {entry.path} is missing; restore it, or remove the artifact and make it again"
            )
        return url


def _compare(record: Record, entry: FileEntry, actual: Digest) -> None:
    if actual != entry.digest:
        raise ArtifactError(f"{record.id}: {entry.path} {storage.describe_mismatch(actual, entry.digest)}")


def _entry(work: Work, path: str) -> FileEntry:
    size, digest = work.digests.get(path) or storage.sha256(storage.join(work.out, path))
    return FileEntry(path=path, bytes=size, sha256=digest)


def _record(draft: Draft, version: int, files: list[FileEntry]) -> Record:
    finished = datetime.now(UTC)
    return Record(
        schema_version=SCHEMA_VERSION,
        id=f"{draft.stage}/{draft.name}@v{version}",
        stage=draft.stage,
        name=draft.name,
        version=version,
        fingerprint=draft.fingerprint,
        format=draft.format,
        identity=json.loads(json.dumps(draft.identity)),
        execution=redacted(draft.execution),
        inputs={
            role: InputEntry(id=record.id, fingerprint=record.fingerprint) for role, record in draft.inputs.items()
        },
        files=files,
        metrics=json.loads(json.dumps(draft.metrics)),
        started=draft.started,
        finished=finished,
        seconds=round((finished - draft.started).total_seconds(), 3),
        code=code_version(),
        packages=packages(),
        argv=redacted_argv(),
    )


def cache_name(record: Record, path: str) -> str:
    """The name in the cache of one file of exactly this artifact, whatever its root."""
    digests = json.dumps([(entry.path, entry.sha256) for entry in record.files])
    return f"{record.id}-{hashlib.sha256(digests.encode()).hexdigest()[:16]}/{path}"

"""The shards of one split of a tokens artifact, by number: each verified before its first use, then mapped."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

from bitlm import storage
from bitlm.artifacts.record import FileEntry, Record
from bitlm.artifacts.store import Store, cache_folder
from bitlm.data.shards.format import Shard
from bitlm.errors import ArtifactError, ConfigError
from bitlm.storage.cache import Cache, Copy

THREADS = 4  # that verify and fetch; both leave the interpreter free

Bring = Callable[[FileEntry, bool], Copy | None]  # (file, whether to wait for room) → a verified copy


@dataclass
class _Held:
    shard: Shard
    copy: Copy


class OpenShards:
    """Safe to use from several threads, as long as one alone calls ``hold``."""

    def __init__(self, files: Sequence[FileEntry], tokens: Sequence[int], num_bits: int, bring: Bring) -> None:
        """``tokens`` are those of each shard, ``bring`` makes a verified local copy of one."""
        self.tokens, self.num_bits = list(tokens), num_bits
        self._files, self._bring = files, bring
        self._held: dict[int, _Held] = {}
        self._wanted: set[int] = set()
        self._coming: dict[int, Future[None]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="shards")

    def __len__(self) -> int:
        return len(self.tokens)

    def shard(self, number: int) -> AbstractContextManager[Shard]:
        """A shard to read from inside the context; one that is not held is opened for this once.

        Raises ArtifactError naming the file that is not what its record says.
        """
        held = self._held.get(number)
        return self._once(number) if held is None else nullcontext(held.shard)

    def keep(self, now: Iterable[int], soon: Iterable[int] = ()) -> None:
        """Keep these shards at hand and let go of all others: those for ``now`` are there on return, those for ``soon``
        come in the background, as far as there is room. A fault met there is raised at the next call."""
        now, soon = set(now), set(soon)
        for number in [number for number, coming in self._coming.items() if coming.done()]:
            self._coming.pop(number).result()
        missing = now - self._held.keys()
        self._keep_only(now if missing else now | soon)  # all the room there is to what is needed now
        for _ in self._pool.map(lambda number: self._fetch(number, wait=True), sorted(missing)):
            pass
        self._wanted = now | soon
        for number in sorted(soon - self._held.keys() - self._coming.keys()):
            self._coming[number] = self._pool.submit(self._fetch, number, wait=False)

    def close(self) -> None:
        """Let go of all shards; a file that is being fetched is fetched to its end first."""
        self._pool.shutdown(cancel_futures=True)
        while self._held:
            self._held.popitem()[1].copy.release()

    @contextmanager
    def _once(self, number: int) -> Iterator[Shard]:
        opened = self._open(number, wait=True)
        assert opened is not None
        try:
            yield opened.shard
        finally:
            opened.copy.release()

    def _keep_only(self, wanted: set[int]) -> None:
        with self._lock:
            self._wanted = wanted
            for number in self._held.keys() - wanted:
                self._held.pop(number).copy.release()

    def _fetch(self, number: int, wait: bool) -> None:
        opened = self._open(number, wait)
        if opened is None:
            return
        with self._lock:  # meanwhile it may have come another way, or be wanted no more
            if number not in self._wanted or self._held.setdefault(number, opened) is not opened:
                opened.copy.release()

    def _open(self, number: int, wait: bool) -> _Held | None:
        copy = self._bring(self._files[number], wait)
        if copy is None:
            return None
        try:
            shard = Shard(copy.path)
            if (shard.tokens, shard.num_bits) != (self.tokens[number], self.num_bits):
                raise ArtifactError(
                    f"{copy.path} holds {shard.tokens:,} tokens of {shard.num_bits} bits, its record says "
                    f"{self.tokens[number]:,} of {self.num_bits}: make the tokens artifact again"
                )
        except BaseException:
            copy.release()
            raise
        return _Held(shard, copy)


def open_splits(
    store: Store, record: Record, splits: dict[str, dict], num_bits: int, window_shards: int, cache_bytes: int | None
) -> dict[str, OpenShards]:
    """The shards of a tokens artifact's splits (those of its ``tokens.json``).

    Local shards stay where they are. Copies of remote ones take at most ``cache_bytes``; by default as much as two
    windows of training shards and one validation shard. Raises ConfigError where that is less than one window and one.
    """
    known = {entry.path: entry for entry in record.files}
    files = {split: [known[shard["path"]] for shard in found["shards"]] for split, found in splits.items()}
    local = storage.is_local(store.root)
    bring = dict.fromkeys(splits, _local(store, record)) if local else {}
    if not local:
        for split, limit in _limits(files, window_shards, cache_bytes).items():
            bring[split] = _remote(store, record, Cache(storage.join(cache_folder(record), "bounded", split), limit))
    return {
        split: OpenShards(files[split], [shard["tokens"] for shard in found["shards"]], num_bits, bring[split])
        for split, found in splits.items()
    }


def _limits(files: dict[str, list[FileEntry]], window_shards: int, cache_bytes: int | None) -> dict[str, int]:
    """Bytes for each split: one shard for validation, the rest for training."""
    window = sum(sorted((file.bytes for file in files["train"]), reverse=True)[:window_shards])
    one = max((file.bytes for file in files["validation"]), default=0)
    if cache_bytes is not None and cache_bytes < window + one:
        raise ConfigError(
            f"pretrain.execution.cache_bytes = {cache_bytes:,} is too little: a window of shards and one for "
            f"validation take {window + one:,} bytes; raise it, or lower pretrain.window_shards"
        )
    return {"train": 2 * window if cache_bytes is None else cache_bytes - one, "validation": one}


def _local(store: Store, record: Record) -> Bring:
    verified: set[str] = set()

    def bring(file: FileEntry, _wait: bool) -> Copy:
        if file.path not in verified:
            with store.local_file(record, file.path):
                pass
            verified.add(file.path)
        return Copy(storage.local_path(store.url(record.id, file.path)))

    return bring


def _remote(store: Store, record: Record, cache: Cache) -> Bring:
    def bring(file: FileEntry, wait: bool) -> Copy | None:
        return cache.take(file.path, store.url(record.id, file.path), (file.bytes, file.sha256), wait)

    return bring

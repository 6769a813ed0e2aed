"""The shards of one split of a tokens artifact, by number: each verified before its first use, then mapped."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from bitlm import storage
from bitlm.artifacts.record import FileEntry, Record
from bitlm.artifacts.store import Store, cache_name
from bitlm.config import PretrainConfig
from bitlm.data.shards.format import Shard
from bitlm.errors import ArtifactError, ConfigError
from bitlm.storage.cache import LIMIT, Copy, Share, open_cache

THREADS = 4  # that verify and fetch; both leave the interpreter free
SETTING = "pretrain.execution.cache_bytes"

HoldFile = Callable[[str, bool], Copy | None]  # (path in the artifact, whether to wait for room) → a verified copy


@dataclass(frozen=True)
class SplitShards:
    """The shards of a split as ``tokens.json`` lists them: ``paths`` in the artifact and ``tokens`` of each."""

    paths: Sequence[str]
    tokens: Sequence[int]
    num_bits: int


@dataclass
class _Open:
    shard: Shard
    copy: Copy


class OpenShards:
    """Safe to use from several threads, as long as only one of them calls ``keep``."""

    def __init__(self, split: SplitShards, hold: HoldFile) -> None:
        self.tokens, self.num_bits = list(split.tokens), split.num_bits
        self._paths, self._hold = split.paths, hold
        self._open: dict[int, _Open] = {}
        self._wanted: set[int] = set()
        self._pending: dict[int, Future[None]] = {}
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="shards")

    def __len__(self) -> int:
        return len(self.tokens)

    def shard(self, number: int) -> AbstractContextManager[Shard]:
        """A shard to read from inside the context; one that is not kept is opened for this once.

        Raises ArtifactError naming the file that is not what its record says.
        """
        kept = self._open.get(number)
        return self._open_once(number) if kept is None else nullcontext(kept.shard)

    def keep(self, current: Iterable[int], upcoming: Iterable[int] = ()) -> None:
        """Keep these shards open and close all others. ``current`` ones are open on return; ``upcoming`` ones are
        opened in the background, as far as there is room. An error there is raised by the next call."""
        current, upcoming = set(current), set(upcoming)
        for number in [number for number, pending in self._pending.items() if pending.done()]:
            self._pending.pop(number).result()
        missing = current - self._open.keys()
        self._close_all_but(current if missing else current | upcoming)  # current ones may take all the room
        for _ in self._pool.map(lambda number: self._load(number, wait=True), sorted(missing)):
            pass
        self._wanted = current | upcoming
        for number in sorted(upcoming - self._open.keys() - self._pending.keys()):
            self._pending[number] = self._pool.submit(self._load, number, wait=False)

    def close(self) -> None:
        """Close all shards; a file that is being fetched is fetched to its end first."""
        self._pool.shutdown(cancel_futures=True)
        while self._open:
            self._open.popitem()[1].copy.release()

    @contextmanager
    def _open_once(self, number: int) -> Iterator[Shard]:
        opened = self._try_open(number, wait=True)
        assert opened is not None
        try:
            yield opened.shard
        finally:
            opened.copy.release()

    def _close_all_but(self, wanted: set[int]) -> None:
        with self._lock:
            self._wanted = wanted
            for number in self._open.keys() - wanted:
                self._open.pop(number).copy.release()

    def _load(self, number: int, wait: bool) -> None:
        opened = self._try_open(number, wait)
        if opened is None:
            return
        with self._lock:  # another thread may have opened it meanwhile, or it is not wanted any more
            if number not in self._wanted or self._open.setdefault(number, opened) is not opened:
                opened.copy.release()

    def _try_open(self, number: int, wait: bool) -> _Open | None:
        copy = self._hold(self._paths[number], wait)
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
        return _Open(shard, copy)


def open_splits(store: Store, record: Record, summary: dict[str, Any], config: PretrainConfig) -> dict[str, OpenShards]:
    """The shards of each split of a tokens artifact; ``summary`` is its ``tokens.json``.

    Local shards are mapped where they are. The cache holds at most ``pretrain.execution.cache_bytes`` of remote ones;
    by default two windows of training shards and one validation shard. Raises ConfigError if that, or the limit of the
    whole cache, is less than one window and one validation shard.
    """
    splits = {
        split: SplitShards(
            [shard["path"] for shard in described["shards"]],
            [shard["tokens"] for shard in described["shards"]],
            summary["num_bits"],
        )
        for split, described in summary["splits"].items()
    }
    limits = {} if storage.is_local(store.root) else _limits(record, splits, config)
    return {
        split: OpenShards(shards, _hold_within(store, record, _share(record, shards, limits.get(split))))
        for split, shards in splits.items()
    }


def _limits(record: Record, splits: dict[str, SplitShards], config: PretrainConfig) -> dict[str, int]:
    """Bytes of the cache for each split: one shard for validation, the rest for training."""
    entries = {split: [record.file(path) for path in shards.paths] for split, shards in splits.items()}
    window = sum(sorted(_sizes(entries["train"]), reverse=True)[: config.window_shards])
    one = max(_sizes(entries["validation"]), default=0)
    cache_bytes = config.execution.cache_bytes
    for setting, limit in ((SETTING, cache_bytes), (LIMIT, open_cache().limit)):
        if limit is not None and limit < window + one:
            raise ConfigError(
                f"{setting} = {limit:,} is too little: a window of shards and one for validation take "
                f"{window + one:,} bytes; raise it, or lower pretrain.window_shards"
            )
    return {"train": 2 * window if cache_bytes is None else cache_bytes - one, "validation": one}


def _sizes(entries: Sequence[FileEntry]) -> list[int]:
    return [entry.bytes for entry in entries]


def _share(record: Record, split: SplitShards, limit: int | None) -> Share | None:
    if limit is None:
        return None
    return Share(frozenset(cache_name(record, path) for path in split.paths), limit, SETTING)


def _hold_within(store: Store, record: Record, share: Share | None) -> HoldFile:
    def hold(path: str, wait: bool) -> Copy | None:
        copies = store.hold(record, [path], share, wait)
        return None if copies is None else copies[0]

    return hold

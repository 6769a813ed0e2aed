import json
import os
from pathlib import Path

import numpy as np
import pytest
from made_tokens import counting, make_tokens, stream

from bitlm.artifacts import Record, Store
from bitlm.config import PretrainConfig
from bitlm.data.reading.open_shards import OpenShards, SplitShards, open_splits
from bitlm.data.reading.sequences import Sequences
from bitlm.errors import ArtifactError
from bitlm.storage import verified
from bitlm.storage.cache import Copy

SHARDS = counting([100, 3, 64, 31])


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, Record]:
    store = Store(str(tmp_path_factory.mktemp("root")))
    return store, make_tokens(store, SHARDS, num_bits=9)


class Library:
    """Brings the shards of an artifact, and keeps account of those that are out. ``room``: how many may be."""

    def __init__(self, made: tuple[Store, Record], room: int = 100) -> None:
        self.store, self.record = made
        self.files = [entry for entry in self.record.files if entry.path.endswith(".arrow")]
        self.room, self.out, self.brought = room, [], []
        self.paths = [entry.path for entry in self.files]
        self.fault: Exception | None = None

    def hold(self, path: str, wait: bool) -> Copy | None:
        library, number = self, self.paths.index(path)
        if self.fault is not None:
            raise self.fault
        if len(self.out) >= self.room:
            assert not wait, "would wait for ever"
            return None

        class Counted(Copy):
            def release(self) -> None:
                library.out.remove(number)

        self.out.append(number)
        self.brought.append(number)
        return Counted(self.store.url(self.record.id, path))

    def shards(self, tokens: list[int] | None = None) -> OpenShards:
        counts = tokens or [len(stream(documents)) for documents in SHARDS]
        return OpenShards(SplitShards(self.paths, counts, 9), self.hold)


def arrived(shards: OpenShards) -> None:
    for coming in list(shards._pending.values()):
        coming.exception()


def test_sequences_are_numbered_through_the_shards(made: tuple[Store, Record]) -> None:
    library = Library(made)
    sequences = Sequences(library.shards(), 16)
    streams = [stream(documents) for documents in SHARDS]
    expected = [tokens[i : i + 16] for tokens in streams for i in range(0, len(tokens) - 15, 16)]
    assert len(sequences) == len(expected)
    assert sequences.unused_tokens == sum(map(len, streams)) - 16 * len(expected)
    order = np.random.default_rng(0).permutation(np.arange(len(expected)).repeat(2))
    ids = sequences.ids(order)
    assert ids.dtype == np.int64
    assert ids.tolist() == [expected[i] for i in order]
    assert sequences.ids([]).shape == (0, 16)
    assert library.out == []
    with pytest.raises(AssertionError):
        sequences.ids([len(expected)])


def test_what_is_held_is_opened_once_and_the_rest_is_let_go(made: tuple[Store, Record]) -> None:
    library = Library(made)
    shards = library.shards()
    shards.keep([0, 1], [2])
    arrived(shards)
    assert sorted(library.out) == [0, 1, 2]
    for _ in range(3):
        shards.keep([0, 1], [2])
        with shards.shard(0) as shard:
            assert shard.ids().tolist() == stream(SHARDS[0])
    with shards.shard(3):
        assert sorted(library.out) == [0, 1, 2, 3]
    assert sorted(library.brought) == [0, 1, 2, 3]
    shards.keep([2], [3])
    arrived(shards)
    assert sorted(library.out) == [2, 3]
    shards.close()
    assert library.out == []


def test_what_is_needed_now_goes_before_what_comes_next(made: tuple[Store, Record]) -> None:
    library = Library(made, room=2)
    shards = library.shards()
    for now, soon in (([0], [1, 2]), ([3, 2], [0, 1]), ([0, 1], [2]), ([1], [2, 3]), ([2, 3], [0])):
        for _ in range(2):
            shards.keep(now, soon)
            arrived(shards)
            assert len(library.out) == 2
            assert set(now) <= set(library.out) <= {*now, *soon}
    shards.close()


def test_a_fault_in_the_background_is_raised_at_the_next_call(made: tuple[Store, Record]) -> None:
    library = Library(made)
    shards = library.shards()
    shards.keep([0])
    library.fault = ArtifactError("s/1 is damaged")
    shards.keep([0], [1])
    arrived(shards)
    with pytest.raises(ArtifactError, match="s/1 is damaged"):
        shards.keep([0], [1])
    library.fault = None
    shards.keep([1], [])
    assert library.out == [1]
    shards.close()


def test_a_shard_of_other_tokens_than_recorded_is_refused(made: tuple[Store, Record]) -> None:
    library = Library(made)
    with pytest.raises(ArtifactError, match=r"00001\.arrow holds 8 tokens of 9 bits, its record says 16 of 9"):
        library.shards([104, 16, 72, 32]).keep([1])
    assert library.out == []


def test_a_local_shard_is_verified_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(str(tmp_path))
    record = make_tokens(store, SHARDS, num_bits=9)
    for entry in record.files:  # long ago, so that no write can be missed by its time
        os.utime(store.url(record.id, entry.path), (0, 0))
    hashed, sha256 = [], verified.sha256
    monkeypatch.setattr(verified, "sha256", lambda path: hashed.append(path) or sha256(path))
    summary = json.loads(store.read_bytes(record, "tokens.json"))
    for _ in range(2):
        shards = open_splits(store, record, summary, PretrainConfig(window_shards=2))["train"]
        for _ in range(3):
            for number in range(len(shards)):
                shards.keep([number])
        shards.close()
    paths = ["tokens.json", *(f"shards/train/{n:05d}.arrow" for n in range(len(SHARDS)))]
    assert sorted(hashed) == sorted(store.url(record.id, path) for path in paths)

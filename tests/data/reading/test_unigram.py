from collections import Counter
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from made import add_document

from bitlm.data.reading import unigram
from bitlm.data.reading.unigram import unigram_counts
from bitlm.data.shards.format import Shard, ShardWriter


@pytest.fixture
def shards(tmp_path: Path) -> tuple[list[str], list[int]]:
    """Two shards, and the ids in them one after the other."""
    rng, paths, ids = np.random.default_rng(0), [], []
    for number in range(2):
        writer = ShardWriter(num_bits=5, end_id=0)
        for row in range(6):
            document = rng.integers(1, 20, size=row * 3 + 1).tolist()
            add_document(writer, f"{row}", row, document)
            ids += [*document, 0]
        paths.append(str(tmp_path / f"{number}.arrow"))
        counts = writer.write(paths[-1], str(tmp_path / f"{number}.parquet"))
        ids += [0] * counts.filling
    return paths, ids


@pytest.mark.parametrize("most", [10**9, 1, 7, 30, 64, 70])
@pytest.mark.parametrize("chunk", [5, 10**6])
def test_counts_are_those_of_the_first_tokens(
    shards: tuple[list[str], list[int]], most: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, ids = shards
    monkeypatch.setattr(unigram, "_CHUNK", chunk)
    expected = Counter(ids[:most])
    assert unigram_counts([nullcontext(Shard(path)) for path in paths], 25, most).tolist() == [
        expected[id] for id in range(25)
    ]


def test_shards_beyond_the_limit_are_not_asked_for(shards: tuple[list[str], list[int]]) -> None:
    paths, ids = shards

    def asked():
        yield nullcontext(Shard(paths[0]))
        pytest.fail("asked for the second shard")

    assert unigram_counts(asked(), 25, most=len(ids) // 4).sum() == len(ids) // 4

from types import SimpleNamespace

import pytest
from made import draft, make

from bitlm import storage
from bitlm.artifacts import Record, Store, diff, explain, lineage, tree
from bitlm.errors import ArtifactError

FILE = {"f": b"x" * 1500}


@pytest.fixture
def chain(local: Store) -> dict[str, Record]:
    """corpus → tokenizer, tokens → pretrain: the corpus is reached along two ways."""
    corpus = make(local, draft("corpus"), FILE)
    tokenizer = make(local, draft("tokenizer", inputs={"corpus": corpus}), FILE)
    tokens = make(local, draft("tokens", inputs={"tokenizer": tokenizer, "corpus": corpus}), FILE)
    model = {"steps": 400, "model": {"width": 8, "layers": 2}, "betas": [0.9, 0.95]}
    pretrain = make(local, draft("pretrain", identity=model, inputs={"tokens": tokens}), FILE)
    return {record.stage: record for record in (corpus, tokenizer, tokens, pretrain)}


def test_inputs_come_before_their_users(local: Store, chain: dict[str, Record]) -> None:
    assert lineage(local, chain["corpus"]) == [chain["corpus"]]
    assert lineage(local, chain["pretrain"]) == [
        chain[stage] for stage in ("corpus", "tokenizer", "tokens", "pretrain")
    ]


def test_a_changed_or_missing_input_is_refused(local: Store, chain: dict[str, Record]) -> None:
    storage.remove_tree(local.url("corpus/tiny@v1"))
    with pytest.raises(ArtifactError, match="no artifact corpus/tiny@v1"):
        lineage(local, chain["pretrain"])
    assert make(local, draft("corpus", identity={"other": 1}), FILE).id == "corpus/tiny@v1"
    for look in (lineage, tree):
        with pytest.raises(
            ArtifactError, match=r"(tokenizer|tokens)/tiny@v1 was made from corpus/tiny@v1 with fingerprint"
        ):
            look(local, chain["pretrain"])


def test_the_tree_names_everything_once(local: Store, chain: dict[str, Record]) -> None:
    lines = tree(local, chain["pretrain"]).splitlines()
    assert lines[0] == "pretrain/tiny@v1 · 1 files, 1.5 kB · documents 3, loss 0.25"
    assert [line.split(" · ")[0] for line in lines[1:]] == [
        "└─ tokens: tokens/tiny@v1",
        "   ├─ tokenizer: tokenizer/tiny@v1",
        "   │  └─ corpus: corpus/tiny@v1",
        "   └─ corpus: corpus/tiny@v1 (above)",
    ]


def test_diff_is_by_field(local: Store, chain: dict[str, Record]) -> None:
    old = chain["pretrain"]
    assert diff(old, old) == []
    corpus = make(local, draft("corpus", identity={"other": 1}), FILE)
    tokens = make(local, draft("tokens", inputs={"corpus": corpus}), FILE)
    identity = {"steps": 800, "model": {"width": 8.0, "layers": 2, "heads": 1}, "seed": 0}
    new = make(local, draft("pretrain", identity=identity, inputs={"tokens": tokens}), FILE)
    changes = {change.key: (change.old, change.new) for change in diff(old, new)}
    assert changes.pop("inputs.tokens") == (
        f"tokens/tiny@v1 ({chain['tokens'].fingerprint[:8]})",
        f"tokens/tiny@v2 ({tokens.fingerprint[:8]})",
    )
    assert changes == {
        "pretrain.steps": (400, 800),
        "pretrain.model.width": (8, 8.0),
        "pretrain.model.heads": ("(absent)", 1),
        "pretrain.betas": ([0.9, 0.95], "(absent)"),
        "pretrain.seed": ("(absent)", 0),
    }
    assert "pretrain.steps: 400 → 800" in map(str, diff(old, new))


def test_the_same_input_under_another_version_is_no_difference(local: Store, chain: dict[str, Record]) -> None:
    again = make(local, draft("tokens", inputs={"tokenizer": chain["tokenizer"], "corpus": chain["corpus"]}), FILE)
    assert again.id == "tokens/tiny@v2"
    new = make(local, draft("pretrain", identity=chain["pretrain"].identity, inputs={"tokens": again}), FILE)
    assert diff(chain["pretrain"], new) == []


def test_explain_tells_why_a_step_makes_a_new_version(chain: dict[str, Record]) -> None:
    coming = SimpleNamespace(key="tokens/tiny", fingerprint="ab" * 32)
    identity = {**chain["pretrain"].identity, "steps": 401}
    step = SimpleNamespace(stage="pretrain", format=2, identity=identity, inputs={"tokens": coming})
    assert explain(None, step) == ["there is none yet"]
    tokens = chain["tokens"].fingerprint[:8]
    assert explain(chain["pretrain"], step) == [
        "pretrain.format: 1 → 2",
        "pretrain.steps: 400 → 401",
        f"inputs.tokens: tokens/tiny@v1 ({tokens}) → tokens/tiny (abababab)",
    ]
    step.identity = {f"k{i}": i for i in range(40)}
    assert explain(chain["pretrain"], step)[-1].endswith("more")
    assert len(explain(chain["pretrain"], step)) < 20

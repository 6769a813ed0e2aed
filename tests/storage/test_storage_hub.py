"""The real client against a small Hub on loopback, and against a port where nobody listens."""

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from fake_hub import FakeHub, OnHub, client

from bitlm import storage
from bitlm.config import CorpusConfig, TokenizerConfig
from bitlm.data.sources.state import corpus_identity, read_tokenizer, tokenizer_identity
from bitlm.errors import SourceError
from bitlm.model import weights
from bitlm.storage.hub import HubRepo, download_file, list_files, read_if_exists, resolve_commit, stat_file

MODEL = HubRepo("some/model", "model", "tokenizer.source", "tokenizer.revision")
COMMIT = "0123456789" * 4
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights",
    "tokenizer.json": b'{"a": 1}',
    "README.md": b"#",
    "onnx/model.safetensors": b"other",
    "pytorch_model.bin": b"pickle",
}


@pytest.fixture
def model(hub: FakeHub) -> str:
    return hub.commit("model", "some/model", FILES)


def test_commits_files_and_digests(model: str, hub: FakeHub, on_hub: OnHub) -> None:
    assert on_hub(resolve_commit, MODEL, None) == on_hub(resolve_commit, MODEL, "main") == model
    hub.requests.clear()
    assert on_hub(resolve_commit, MODEL, COMMIT) == COMMIT
    assert hub.requests == []
    listed = on_hub(list_files, MODEL, model)
    assert {file.path: file.bytes for file in listed} == {path: len(data) for path, data in FILES.items()}
    digests = {file.path: file.digest for file in listed}
    assert digests["model.safetensors"] == f"sha256:{hashlib.sha256(b'weights').hexdigest()}"
    assert digests["config.json"] == "git:9e26dfeeb6e641a33dae4961196235bdb965b21b"  # git hash-object of {}
    assert on_hub(stat_file, MODEL, model, "config.json") == listed[[f.path for f in listed].index("config.json")]
    assert [file.path for file in on_hub(list_files, MODEL, model, "onnx")] == ["onnx/model.safetensors"]
    assert Path(on_hub(download_file, MODEL, model, "config.json")).read_bytes() == b"{}"
    assert on_hub(read_if_exists, MODEL, model, "config.json") == b"{}"
    assert on_hub(read_if_exists, MODEL, model, "absent.json") is None


@pytest.mark.parametrize(
    ("name", "revision", "problem"),
    [
        ("some/absent", None, r"hub:some/absent: there is no such model, or it is private: correct tokenizer\.source"),
        ("some/model", "v2", r"hub:some/model: revision v2 does not exist: correct tokenizer\.revision"),
        (
            "not a name",
            None,
            r"hub:not a name: this is not the name of a repository: set tokenizer\.source to hub:OWNER",
        ),
        ("a/b/c", None, r"hub:a/b/c: this is not the name of a repository"),
    ],
)
def test_what_is_not_there(name: str, revision: str | None, problem: str, model: str, on_hub: OnHub) -> None:
    with pytest.raises(SourceError, match=problem):
        on_hub(resolve_commit, HubRepo(name, "model", "tokenizer.source", "tokenizer.revision"), revision)


def test_files_that_are_not_there(model: str, on_hub: OnHub) -> None:
    with pytest.raises(
        SourceError, match=r"hub:some/model has no absent\.json at commit \w{12}: correct tokenizer\.sour"
    ):
        on_hub(stat_file, MODEL, model, "absent.json")
    with pytest.raises(SourceError, match=r"hub:some/model: absent\.json at commit \w{12} does not exist"):
        on_hub(download_file, MODEL, model, "absent.json")
    with pytest.raises(SourceError, match=r"the list of files of absent at commit \w{12} does not exist"):
        on_hub(list_files, MODEL, model, "absent")


def test_a_tokenizer_is_its_content(model: str, hub: FakeHub, on_hub: OnHub) -> None:
    config = TokenizerConfig(source="hub:some/model")
    identity = on_hub(tokenizer_identity, config)
    assert on_hub(read_tokenizer, config) == FILES["tokenizer.json"]
    hub.commit("model", "some/model", FILES | {"README.md": b"more"})
    assert on_hub(tokenizer_identity, config) == identity
    assert on_hub(tokenizer_identity, config.model_copy(update={"revision": model})) == identity
    hub.commit("model", "some/model", FILES | {"tokenizer.json": b"{}"})
    assert on_hub(tokenizer_identity, config) != identity


def test_start_weights_are_their_content(model: str, hub: FakeHub, on_hub: OnHub) -> None:
    state = on_hub(weights.outside_state, "hub:some/model")
    assert set(state["files"]) == {"config.json", "model.safetensors"}
    hub.commit("model", "some/model", FILES | {"README.md": b"more"})
    folder = on_hub(weights.fetch, "hub:some/model", state)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    hub.commit("model", "some/model", FILES | {"model.safetensors": b"trained on"})
    with pytest.raises(SourceError, match="hub:some/model has changed since this run began"):
        on_hub(weights.fetch, "hub:some/model", state)
    assert on_hub(weights.outside_state, f"hub:some/model@{model}") == state
    hub.commit("model", "some/model", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(SourceError, match=r"no config\.json or no safetensors file"):
        on_hub(weights.outside_state, "hub:some/model")


@pytest.fixture(scope="module")
def closed() -> Iterator[str]:
    """An endpoint that refuses every connection: the port is taken, but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture(scope="module")
def offline(closed: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnHub]:
    yield from client(closed, tmp_path_factory)


def without_pauses(function: Callable[..., Any], *arguments: Any) -> Any:
    """The client's and our own repetitions, without the pauses between them."""
    with mock.patch("time.sleep"):
        return function(*arguments)


@pytest.mark.parametrize(
    ("function", "arguments", "setting"),
    [
        (resolve_commit, (MODEL, None), "tokenizer.source"),
        (list_files, (MODEL, COMMIT), "tokenizer.source"),
        (stat_file, (MODEL, COMMIT, "tokenizer.json"), "tokenizer.source"),
        (download_file, (MODEL, COMMIT, "tokenizer.json"), "tokenizer.source"),
        (read_if_exists, (MODEL, COMMIT, "README.md"), "tokenizer.source"),
        (corpus_identity, (CorpusConfig(source="hub:some/set"),), "corpus.source"),
        (corpus_identity, (CorpusConfig(source="hub:some/set", revision=COMMIT),), "corpus.source"),
        (corpus_identity, (CorpusConfig(summaries="hub:some/set", summaries_revision=COMMIT),), "corpus.summaries"),
        (tokenizer_identity, (TokenizerConfig(source="hub:some/model"),), "tokenizer.source"),
        (read_tokenizer, (TokenizerConfig(source="hub:some/model", revision=COMMIT),), "tokenizer.source"),
        (weights.outside_state, ("hub:some/model",), "pretrain.init_from"),
        (weights.outside_state, (f"hub:some/model@{COMMIT}",), "pretrain.init_from"),
    ],
)
def test_an_unreachable_hub(
    function: Callable[..., Any], arguments: tuple[Any, ...], setting: str, offline: OnHub
) -> None:
    with pytest.raises(
        SourceError, match=rf"hub:some/\w+: .*\(\[Errno 111\].*check the network .* or set {setting} to "
    ):
        offline(without_pauses, function, *arguments)


def test_reading_a_file_of_an_unreachable_hub(offline: OnHub) -> None:
    with pytest.raises(SourceError, match=r"hf://datasets/.*asked 4 times .*check the network and HF_ENDPOINT"):
        offline(without_pauses, storage.read_bytes, f"hf://datasets/some/set@{COMMIT}/a.parquet")


COMMAND = """
import sys, time
from bitlm_flows.cli import main
time.sleep = lambda seconds: None  # the pauses of the client, 23 seconds in all
sys.exit(main())
"""


@pytest.mark.parametrize("variables", [{}, {"HF_HUB_OFFLINE": "1"}])
def test_a_plan_without_network_is_one_line(variables: dict[str, str], closed: str, tmp_path: Path) -> None:
    folders = {"HF_HOME": str(tmp_path / "hf"), "BITLM_CACHE": str(tmp_path / "cache")}
    words = ["-c", COMMAND, "plan", "--preset", "0.6b", "--root", str(tmp_path / "root")]
    done = subprocess.run(
        [sys.executable, *words],
        env={**os.environ, **folders, **variables, "HF_ENDPOINT": closed},
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("bitlm: ")]
    assert len(lines) == 1
    assert "hub:HuggingFaceFW/fineweb: README.md at commit 9bb295ddab0e cannot be fetched" in lines[0]
    assert "set corpus.source to the path of a local copy" in lines[0]
    assert "Traceback" not in done.stderr

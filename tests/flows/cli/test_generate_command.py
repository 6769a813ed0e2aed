import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from bitlm.config import TokenizerConfig
from bitlm.data.shards import tokenizer as tokenizers
from bitlm.data.shards.tokenizer import INFO_FILE, TOKENIZER_FILE
from bitlm.model import BitLMConfig, BitLMForCausalLM
from bitlm.text import printable
from bitlm_flows.cli import main
from bitlm_flows.cli.generate import trace_lines

TEXTS = ["Return the value of an item.", "Raise an error when it is none, naïve or “quoted”."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model and a tokenizer whose tokens are single bytes for the most part."""
    folder = tmp_path_factory.mktemp("model")
    section = TokenizerConfig(vocab_size=300)
    data = tokenizers.train(TEXTS, section)
    info = tokenizers.describe(data, section)
    torch.manual_seed(0)
    config = BitLMConfig(
        vocab_size=info.vocab_size,
        embedding_rows=384,
        num_bits=info.num_bits,
        hidden_size=32,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=48,
        diffusion_head={"num_layers": 2, "head_dim": 16},
        end_token_id=info.end_id,
    )
    model = BitLMForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    (folder / TOKENIZER_FILE).write_bytes(data)
    (folder / INFO_FILE).write_text(info.model_dump_json(), encoding="utf8")
    return folder


def words(folder: Path, *more: str) -> list[str]:
    return ["generate", "--model", str(folder), "--max-new-tokens", "10", "--num-steps", "5", "--device", "cpu", *more]


def test_what_is_streamed_is_what_json_says_prompt_by_prompt(folder: Path, capsys) -> None:
    options = ["--guidance-scale", "2", "--stagger", "0.5", "--seed", "3"]
    given = words(folder, *options, "--prompt", TEXTS[0], "--prompt", "Raise")
    assert main([*given, "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)
    assert [answer["prompt"] for answer in answers] == [TEXTS[0], "Raise"]
    assert all(answer["head_calls"] == 10 * answer["blocks"] and answer["tokens"] <= 10 for answer in answers)
    assert answers[0]["text"] != answers[1]["text"]
    assert main(given) == 0
    streamed = capsys.readouterr().out
    first, _, second = streamed.partition("\nRaise")
    assert first.removeprefix(TEXTS[0]).strip() == printable(answers[0]["text"])
    assert second.strip() == printable(answers[1]["text"])


def test_a_trace_tells_the_step_of_every_bit(folder: Path, capsys) -> None:
    given = words(folder, "--prompt", "Return", "--trace")
    assert main([*given, "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert len(answer["commit_steps"]) == answer["blocks"]
    for steps, values in zip(answer["commit_steps"], answer["values"], strict=True):
        assert len(values) == 6  # the noise, and A after each of five steps
        for slot in range(4):
            for bit in range(9):
                signs = [value[slot][bit] > 0 for value in values]
                assert set(signs[steps[slot][bit] :]) == {signs[-1]}
    assert main(given) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Return\nblock 0, 10 head calls\n")
    assert printed.rstrip().endswith(printable(answer["text"]))


def test_commitment_traces_the_call_in_which_a_token_landed(folder: Path, capsys) -> None:
    given = ["generate", "--model", str(folder), "--max-new-tokens", "8", "--device", "cpu", "--prompt", "Return"]
    options = ["--sampler", "commit", "--slots-per-call", "2", "--temperature", "1", "--trace", "--json"]
    assert main([*given, *options]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["head_calls"] == 2 * answer["blocks"]
    for steps in answer["commit_steps"]:
        assert all(step in (0, 1) for slot in steps[:2] for step in slot)
        assert all(step in (0, 2) for slot in steps[2:] for step in slot)


def test_trace_table_by_hand() -> None:
    states = torch.tensor([[[1.0, -1, 1], [1, 1, 1]], [[-1, -1, -1], [1, 1, -1]], [[-1, -1, 1], [1, 1, -1]]])
    assert trace_lines(states, ["' a'"]) == [
        "  bit  2 1 0",
        "  ' a' 1 · 2",
        "  —    · · 1",
    ]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--prompt", ""], "--prompt '' is empty"),
        (["--prompt", "x", "--stagger", "2"], "stagger = 2.0"),
        (["--prompt", "x", "--num-steps", "0"], "num_steps = 0"),
        (["--prompt", "x", "--guidance-scale", "-1"], "guidance_scale = -1.0"),
        (["--prompt", "x", "--threshold", "0.5"], "threshold = 0.5 goes with sampler = commit, not with descent"),
    ],
)
def test_mistakes_are_one_line(folder: Path, capsys, more: list[str], message: str) -> None:
    assert main(words(folder, *more)) == 1
    told = capsys.readouterr().err
    assert message in told
    assert len([line for line in told.splitlines() if line.startswith("bitlm:")]) == 1


def test_a_folder_without_a_tokenizer_is_refused(folder: Path, tmp_path: Path, capsys) -> None:
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    assert main(words(tmp_path, "--prompt", "x")) == 1
    assert f"{TOKENIZER_FILE} is missing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["gpu", "mps", "cuda:99", "meta"])
def test_a_device_that_is_not_there_is_one_line(folder: Path, name: str, capsys) -> None:
    assert main([*words(folder, "--prompt", "Return"), "--device", name]) == 1
    shown = capsys.readouterr()
    assert not shown.out
    assert re.fullmatch(rf"bitlm: device '{name}': .*; choose one of: cpu.*\n", shown.err)


def test_a_folder_that_holds_no_model_is_refused(folder: Path, tmp_path: Path, capsys) -> None:
    """No configuration, one of another model, weights that are cut or a pickle, another model's tokenizer."""
    empty, other, cut, pickle, mixed = (tmp_path / name for name in ("empty", "other", "cut", "pickle", "mixed"))
    empty.mkdir()
    for copied in (other, cut, pickle, mixed):
        shutil.copytree(folder, copied)
    (other / "config.json").write_text('{"model_type": "qwen3"}')
    weights = (folder / "model.safetensors").read_bytes()
    (cut / "model.safetensors").write_bytes(weights[:-50])
    (pickle / "model.safetensors").rename(pickle / "pytorch_model.bin")
    info = json.loads((folder / INFO_FILE).read_text())
    (mixed / INFO_FILE).write_text(json.dumps(info | {"vocab_size": info["vocab_size"] - 1}))
    expected = {
        empty: "config.json is missing; give a folder that holds a model and its tokenizer, or an artifact's id",
        other: "config.json: model_type = 'qwen3': expected 'bitlm'",
        cut: "no readable model there",
        pickle: "no readable model there (Error no file named model.safetensors",
        mixed: "tokens",
    }
    for path, message in expected.items():
        assert main(words(path, "--prompt", "x")) == 1
        told = capsys.readouterr().err
        assert told.startswith(f"bitlm: {path}")
        assert message in told
        assert told.count("\n") == 1


def test_the_descent_takes_no_temperature(folder: Path, capsys) -> None:
    assert main(words(folder, "--prompt", "x", "--temperature", "1")) == 1
    assert "bitlm: temperature = 1.0: the descent of a diffusion head has none" in capsys.readouterr().err


@pytest.mark.parametrize("sampler", ["descent", "commit"])
def test_bfloat16_is_the_model_cast(folder: Path, capsys, sampler: str) -> None:
    options = ["--num-steps", "5", "--guidance-scale", "2"] if sampler == "descent" else []
    given = ["generate", "--model", str(folder), "--max-new-tokens", "10", "--device", "cpu", "--sampler", sampler]
    assert main([*given, *options, "--dtype", "bfloat16", "--prompt", TEXTS[0], "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    model, tokenizer = BitLMForCausalLM.load(folder).bfloat16(), tokenizers.TextTokenizer.load(folder)
    settings = {"num_steps": 5, "guidance_scale": 2.0} if sampler == "descent" else {}
    ids = model.generate([tokenizer.encode(TEXTS[0])], max_new_tokens=10, sampler=sampler, **settings).ids
    assert answer["text"] == tokenizer.decode(ids[0]).strip()

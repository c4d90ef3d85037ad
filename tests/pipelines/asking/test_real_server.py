"""A real OpenAI-compatible server, `transformers serve`, with two tiny models: one that speaks, one that babbles."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file
from worldloom.errors import UserError
from worldloom.packing.storage import Folder
from worldloom.pipelines.asking.ask import ask
from worldloom.pipelines.asking.outcome import Chunk, Pair, Usage
from worldloom.pipelines.asking.prompt import PROMPT
from worldloom.pipelines.media import Unfit
from worldloom.sources import QuestionsSection

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

WIDTH = 32  # of the models, and their vocabulary's size
PIECES = ['{"question":', ' "Who', " keeps", " the", ' lamp?",', ' "answer":', ' "old', " Tomas", ' Brandt"', "}"]
END, ANSWER = 1, 2  # ids; the pieces of the reply follow
SECONDS = 120.0  # for the server to start
CHUNKS = [Chunk(f"book{n}#0", f"Passage {n} begins. The lamp is kept by old Tomas Brandt.") for n in range(12)]


class Serving(NamedTuple):
    url: str
    speaks: str
    babbles: str


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer of words between spaces; the prompt's are unknown to it, and each is one token."""
    words = {word: number for number, word in enumerate(["<unk>", "</s>", "<answer>", *PIECES])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.WhitespaceSplit(), decoders.Fuse()
    tokenizer.add_special_tokens(["<unk>", "</s>", "<answer>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "<unk>",
        "eos_token": "</s>",
        "chat_template": "{% for m in messages %}{{ m['content'] }} {% endfor %}<answer>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def write_model(folder: Path, speaks: bool) -> str:
    """Write a Llama of one layer: drawn by a seed, or such that each piece of the reply calls the next."""
    folder.mkdir()
    write_tokenizer(folder)
    rng = np.random.default_rng(0)
    square = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    square += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    names = ["lm_head", "model.embed_tokens", *(f"model.layers.0.{name}" for name in square)]
    weights = {f"{name}.weight": rng.normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32) for name in names}
    if speaks:
        weights = dict.fromkeys(weights, np.zeros((WIDTH, WIDTH), np.float32))
        weights["model.embed_tokens.weight"] = np.eye(WIDTH, dtype=np.float32)
        weights["lm_head.weight"] = following([ANSWER, *range(ANSWER + 1, ANSWER + 1 + len(PIECES)), END])
    norms = ("model.norm", "model.layers.0.input_layernorm", "model.layers.0.post_attention_layernorm")
    weights |= {f"{name}.weight": np.ones(WIDTH, np.float32) for name in norms}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    sizes = ("vocab_size", "hidden_size", "intermediate_size")
    heads = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "max_position_embeddings": 4096}
    config |= dict.fromkeys(sizes, WIDTH) | dict.fromkeys(heads, 1) | {"bos_token_id": None, "eos_token_id": END}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": END, "pad_token_id": END}))
    return str(folder)


def following(ids: list[int]) -> np.ndarray:
    """Make the output weights under which each id calls the next."""
    weights = np.zeros((WIDTH, WIDTH), np.float32)
    for before, after in pairwise(ids):
        weights[after, before] = 100.0
    return weights


@pytest.fixture(scope="module")
def serving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    folder = tmp_path_factory.mktemp("served")
    speaks, babbles = write_model(folder / "speaks", True), write_model(folder / "babbles", False)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [str(Path(sys.executable).with_name("transformers")), "serve", "--device", "cpu"]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "home"), "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env={**os.environ, **offline},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", process, folder / "log")
        yield Serving(f"http://127.0.0.1:{port}/v1", speaks, babbles)
    finally:
        process.kill()
        process.wait(10)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
    raise AssertionError(f"transformers serve did not start: {log.read_text()[-2000:]}")


def section(serving: Serving, model: str, **changes: object) -> QuestionsSection:
    given = {"by": "server", "url": serving.url, "model": model, "max_tokens": 40, "structured": "none", "at_once": 4}
    return QuestionsSection(**{**given, **changes})


def prompt_tokens(chunk: Chunk) -> int:
    return len(PROMPT.replace("{}", chunk.text).split()) + 1  # words, and <answer>


def test_a_model_that_speaks(serving: Serving, tmp_path: Path) -> None:
    outcomes = list(ask(CHUNKS, section(serving, serving.speaks), 5, Folder(str(tmp_path))))
    assert [o.chunk for o in outcomes] == CHUNKS
    for outcome in outcomes:
        assert isinstance(outcome.found, Pair)
        assert outcome.found[:2] == ("Who keeps the lamp?", "old Tomas Brandt")
        assert outcome.found.told["model"] == serving.speaks
        assert outcome.usage == Usage(1, prompt_tokens(outcome.chunk), len(PIECES) + 1)  # and the end


def test_a_model_that_babbles(serving: Serving, tmp_path: Path) -> None:
    """Every chunk is accounted for and paid for once, though no reply is of use."""
    given = section(serving, serving.babbles, structured="json_object")  # which this server knows and leaves undone
    outcomes = list(ask(CHUNKS, given, 5, Folder(str(tmp_path))))
    assert [o.chunk for o in outcomes] == CHUNKS
    for outcome in outcomes:
        assert isinstance(outcome.found, Unfit) and outcome.found.reason == "no valid reply"
        assert outcome.usage.requests == 2 and outcome.usage.completion_tokens <= 80
        assert outcome.usage.prompt_tokens > 2 * prompt_tokens(outcome.chunk)
    nobody = section(serving, serving.babbles, structured="json_object", url="http://127.0.0.1:9/v1")
    assert [o.usage for o in ask(CHUNKS, nobody, 5, Folder(str(tmp_path)))] == [o.usage for o in outcomes]


def test_a_model_that_it_has_not(serving: Serving, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gives no reply: 500"):
        list(ask(CHUNKS, section(serving, str(tmp_path / "none"), retries=1), 5, Folder(str(tmp_path / "replies"))))

"""Pruned models behind servers on this machine, asked by the openai client: llama.cpp's own, and transformers'."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time

import pytest
from gguf_files import tiny_gguf
from transformers import AutoTokenizer

from shallower import drop, drop_gguf, load, prune, prune_gguf
from shallower.settings.writing import Writing
from shallower.surgery.llama_cpp import llama_cpp_version

openai = pytest.importorskip("openai")
SERVER = """
import json, sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup, params.fit_params = sys.argv[1], 64, 1, False, False
server = xllamacpp.Server(params)
print(json.dumps(server.listening_address), flush=True)
sys.stdin.readline()
"""


@pytest.mark.skipif(llama_cpp_version() is None, reason="xllamacpp is not installed")
def test_the_openai_client_is_answered(tmp_path) -> None:
    source = tiny_gguf(tmp_path / "a.gguf", "llama")
    prune_gguf(source, drop_gguf(source, "1-2"), out=tmp_path / "small.gguf", writing=Writing(verify=False))
    command = [sys.executable, "-c", SERVER, str(tmp_path / "small.gguf")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, **pipes) as server:
        try:
            address = json.loads(server.stdout.readline())
            assert address.startswith("http://127.0.0.1:")
            client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", timeout=60, max_retries=0)
            asked = {"model": "small", "prompt": "w1 w2 w3", "max_tokens": 8, "temperature": 0}
            answers = [client.completions.create(**asked) for _ in range(2)]
            assert answers[0].usage.completion_tokens in range(1, 9)
            assert answers[0].choices[0].text == answers[1].choices[0].text
        finally:
            server.terminate()


@pytest.mark.slow
def test_transformers_serve_answers_as_generate_does(smollm2, tmp_path) -> None:
    """A pruned folder behind ``transformers serve``: a chat, and the completion that greedy decoding gives."""
    pytest.importorskip("uvicorn", reason="transformers[serving] is not installed")
    folder, port = tmp_path / "small", free_port()
    prune(smollm2, drop(smollm2, "12-17"), out=folder, verify=False)
    hub = tmp_path / "hub"
    hub.mkdir()  # without a cache of the Hub the list of models ends in an error
    start = [sys.executable, "-c", "from transformers.cli.transformers import main; main()"]
    command = [*start, "serve", str(folder), "--device", "cpu", "--host", "127.0.0.1", "--port", str(port)]
    environment = os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment) as server:
        try:
            wait_for(port, server)
            client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", timeout=120, max_retries=0)
            asked = {"model": str(folder), "max_tokens": 8, "temperature": 0}
            said = client.chat.completions.create(messages=[{"role": "user", "content": "Say hello."}], **asked)
            assert said.choices[0].message.content
            text = "The capital of France is"
            served = client.completions.create(prompt=text, **asked).choices[0].text
        finally:
            server.terminate()
    model = load(folder)
    tokens = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt")
    own = model.generate(**tokens, max_new_tokens=8, do_sample=False)[0, tokens.input_ids.shape[1] :]
    assert served == AutoTokenizer.from_pretrained(folder).decode(own, skip_special_tokens=True)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(port: int, server: subprocess.Popen) -> None:
    """Until the server listens."""
    for _ in range(180):
        assert server.poll() is None, "the server has ended"
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(1)
    raise AssertionError("the server does not listen")

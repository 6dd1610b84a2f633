"""A pruned .gguf file behind llama.cpp's own server on this machine, asked by the openai client."""

import json
import subprocess
import sys

import pytest
from gguf_files import tiny_gguf

from shallower import drop_gguf, prune_gguf
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

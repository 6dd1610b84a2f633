"""llama.cpp as a judge: log-probabilities that it gives behind prompts, and tokens of texts, in a process of its own
(through xllamacpp).

A failed check inside llama.cpp ends the process; here it is one line. As a script, ``python -m
shallower.surgery.llama_cpp FILE OUT`` reads prompts as JSON, writes a .npy file and prints tokens as JSON.
"""

import json
import re
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..errors import UserError

PACKAGE = "xllamacpp"
SAYS_WHY = re.compile(r"ASSERT|\berror\b|Error:|\bfailed\b")
PATIENCE = 3600.0  # seconds that one file gets


def llama_cpp_version() -> str | None:
    """Version of xllamacpp; None where it is not installed."""
    try:
        return metadata.version(PACKAGE)
    except metadata.PackageNotFoundError:
        return None


class Judged(NamedTuple):
    """What llama.cpp makes of a file: log-probabilities behind prompts, and the tokens of texts."""

    values: Float[np.ndarray, "prompt token"]
    tokens: list[list[int]]


def log_probabilities(file: Path, prompts: list[list[int]], vocabulary: int) -> Float[np.ndarray, "prompt token"]:
    """Log-probability of every token behind every prompt (see ``judged``)."""
    return judged(file, prompts, vocabulary).values


def judged(
    file: Path, prompts: list[list[int]], vocabulary: int, *, exact: bool = False, texts: Sequence[str] = ()
) -> Judged:
    """Log-probability of every token behind every prompt, and the tokens of texts, none added in front.

    Args:
        exact: with a cache in float32 and plain attention, to be held against another runtime.
    Raises:
        UserError: llama.cpp does not load the file, or ends.
    """
    with tempfile.TemporaryDirectory(prefix="shallower-llama-cpp-") as place:
        out = Path(place, "values.npy")
        asked = json.dumps({"prompts": prompts, "vocabulary": vocabulary, "exact": exact, "texts": [*texts]})
        command = [sys.executable, "-m", __name__, str(file), str(out)]
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=PATIENCE)
        if done.returncode or not out.is_file():
            lines = [line for line in done.stderr.splitlines() if SAYS_WHY.search(line)]
            why = " ".join(lines[0].split())[-200:] if lines else f"it ended with status {done.returncode}"
            raise UserError(f"llama.cpp does not run {file} ({why})")
        return Judged(np.load(out), json.loads(done.stdout.splitlines()[-1]))


def _main(file: str, out: str) -> None:
    asked = json.load(sys.stdin)
    server = _server(file, max(map(len, asked["prompts"])), exact=asked["exact"])
    rows = [_row(server.listening_address, prompt, asked["vocabulary"]) for prompt in asked["prompts"]]
    np.save(out, np.stack(rows))
    told = [_asked(server.listening_address, "tokenize", {"content": text}) for text in asked["texts"]]
    print()
    print(json.dumps([one["tokens"] for one in told]))


def _server(file: str, longest: int, *, exact: bool) -> Any:
    """llama.cpp's own server on a free port of this machine alone."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx = longest + 8
    params.n_parallel = 1
    params.warmup = False
    params.fit_params = False
    params.n_gpu_layers = 0  # the same kernels for both files, whatever the machine
    if exact:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    return xllamacpp.Server(params)


def _row(address: str, prompt: list[int], vocabulary: int) -> Float[np.ndarray, " token"]:
    """Log-probabilities behind one prompt.

    They come with the token that is drawn, and not with one that ends the text or is a part of a character; then
    another one is drawn by force, which changes none of them.
    """
    body = {"prompt": prompt, "n_predict": 1, "n_probs": vocabulary, "temperature": -1.0, "cache_prompt": False}
    for forced in (None, *range(vocabulary)):
        bias = {} if forced is None else {"logit_bias": [[forced, 1e4]]}
        found = _asked(address, "completion", body | bias).get("completion_probabilities")
        if found:
            values = np.full(vocabulary, -np.inf)
            for one in found[0]["top_logprobs"]:
                values[one["id"]] = one["logprob"]
            return values
    raise RuntimeError("error: no token comes with log-probabilities")


def _asked(address: str, what: str, body: dict[str, Any]) -> dict[str, Any]:
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/{what}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


if __name__ == "__main__":
    _main(*sys.argv[1:3])

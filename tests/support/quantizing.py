"""Stand-in for the interpreter of an environment that has llm-compressor: it does jobs without quantising anything."""

import stat
import sys
from pathlib import Path

VERSIONS = {"python": "3.12.1", "llmcompressor": "0.14.0.1", "compressed-tensors": "0.19.0", "transformers": "5.17.0"}
SCRIPT = """#!{python}
import json, os, sys, time
from pathlib import Path

HOME, MODE, VERSIONS = Path({home!r}), os.environ.get("STAND_IN", ""), {versions!r}
if "-c" in sys.argv:
    versions = {{name: text for name, text in VERSIONS.items() if MODE != "without" or name != "llmcompressor"}}
    print("no answer" if MODE == "silent" else json.dumps(versions))
    sys.exit()
import numpy as np
import torch
from safetensors.torch import load_file, save_file

job = json.loads(Path(sys.argv[-1]).read_text())
tokens = np.load(job["tokens"], allow_pickle=False)
(HOME / (job["do"] + ".json")).write_text(json.dumps(job | {{"ids": tokens.tolist(), "pid": os.getpid()}}))
print("shallower: at work", flush=True)
print("(1/8): Calibrating: 50%|#####     |", end="\\r", flush=True)
if MODE == "hangs":
    time.sleep(600)
if MODE == "killed":
    os.kill(os.getpid(), 9)
if MODE == "fails":
    print("Traceback (most recent call last):", file=sys.stderr)
    print("error: ValueError: the model type `new` is not known", flush=True)
    sys.exit(1)
if MODE == "mute":
    sys.exit(0)
answer = {{}}
if job["do"] == "quantise":
    out = Path(job["out"])
    out.mkdir()
    made = {{}}
    for file in sorted(Path(job["model"]).glob("*.safetensors")):
        for name, weight in load_file(file).items():
            whole = MODE == "few" and ".7." in name
            if name.endswith("_proj.weight") and not whole:
                stem = name.removesuffix(".weight")
                made[stem + ".weight_packed"] = torch.zeros(len(weight), weight.shape[1] // 8, dtype=torch.int32)
                made[stem + ".weight_scale"] = torch.ones(len(weight), 1, dtype=torch.bfloat16)
            else:
                made[name] = weight.bfloat16()
    save_file(made, out / "model.safetensors", metadata={{"format": "pt"}})
    config = json.loads((Path(job["model"]) / "config.json").read_text())
    config["quantization_config"] = {{"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": []}}
    if MODE == "plain":
        del config["quantization_config"]
    (out / "config.json").write_text(json.dumps(config | {{"of_another_version": 1}}))
else:
    answer = {{"divergence": 0.25, "nll_before": 3.0, "nll_after": 3.2, "same_next": 0.75}}
    if MODE == "nan":
        answer["divergence"] = None
    if MODE == "far":
        answer["nll_after"] = 9.0
text = "[" if MODE == "broken" else json.dumps(answer)
Path(job["answer"]).write_text("[]" if MODE == "list" else text)
"""


def stand_in(home: Path) -> Path:
    """The interpreter; the environment variable STAND_IN says what goes wrong. It notes its jobs beside itself."""
    home.mkdir(parents=True, exist_ok=True)
    path = home / "python"
    path.write_text(SCRIPT.format(python=sys.executable, home=str(home), versions=VERSIONS))
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path

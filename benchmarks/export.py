"""Out into the world: .gguf files pruned by copying, repaired models as .gguf, and quantised by GPTQ, on the CPU.

A fifth of the parameters goes, as whole layers. What is left is measured as it is and repaired by ``sequential``,
each as a folder, as a .gguf file in its own types, and quantised to 4 bits (Shortened LLaMA's last step); perplexity
on three texts, bytes, and the speed that llama.cpp gives. Copying is held against ``cp`` of the same bytes, start-up
included, and inspecting against a second and 300 MB. Quantising needs $SHALLOWER_QUANTIZE_PYTHON, and compressed-
tensors to read what comes out.
Each finished piece is on disk before the next one begins; the table is made from the JSON file alone. A second model is
measured too where $SHALLOWER_SECOND_MODEL names one.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from export_tables import table
from harness.models import Measured, about, sources
from harness.pieces import Jobs, check_data, needed, run
from harness.store import CALIBRATION, FP32, ROOT, TEXTS

from shallower import (
    Amount,
    Calibration,
    RepairOptions,
    SelectionOptions,
    drop,
    drop_gguf,
    export,
    open_model,
    plan,
    prune,
    prune_gguf,
    quantize,
)
from shallower.evaluation.perplexity import perplexity

FULL: dict[str, Any] = {
    **{"scoring": [10, 128], "fitting": [64, 128], "tokens": 4096, "length": 128, "share": 0.2, "repeats": 5},
    **{"prompt": 128, "new": 64, "gptq": [32, 256]},
}
QUICK = FULL | {
    **{"scoring": [2, 32], "fitting": [8, 32], "tokens": 256, "length": 32, "repeats": 1},
    **{"prompt": 8, "new": 4, "gptq": [2, 32]},
}
FORMS = ("pruned", "repaired")
# runs one command of ours, and says what it took
MEASURE = """
import sys
from shallower.cli import main
try:
    main(sys.argv[1:])
finally:
    print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""
# decodes in llama.cpp, and says how many tokens per second
SPEED = """
import json, sys, urllib.request, xllamacpp
params = xllamacpp.CommonParams()
prompt, new = map(int, sys.argv[2:4])
params.model.path, params.n_ctx, params.n_parallel, params.fit_params = sys.argv[1], prompt + new + 8, 1, False
params.n_gpu_layers = 0
server = xllamacpp.Server(params)
body = {"prompt": list(range(100, 100 + prompt)), "n_predict": new, "temperature": 0, "ignore_eos": True}
data = json.dumps(body | {"cache_prompt": False}).encode()
asked = urllib.request.Request(server.listening_address + "/completion", data)
asked.add_header("Content-Type", "application/json")
told = json.load(urllib.request.urlopen(asked))["timings"]
print(json.dumps([told["prompt_per_second"], told["predicted_per_second"]]))
"""


def jobs(data: Path, settings: dict, pieces: dict) -> Jobs:
    """The pieces, by model."""
    check_data(data, CALIBRATION, *TEXTS)
    found: dict[str, Callable[[], dict]] = {}
    for source in sources():
        one, name = Bench(source, data, settings), source.stem
        chosen = partial(needed, pieces, f"choose {name}")
        found |= {f"dense {name}": one.dense, f"choose {name}": one.choose, f"inspect {name}": one.inspect}
        found[f"copy {name}"] = partial(one.copy, chosen)
        for form in FORMS:
            found[f"folder {name} {form}"] = partial(one.folder, chosen, form)
            made = partial(needed, pieces, f"folder {name} {form}")
            found[f"gguf {name} {form}"] = partial(one.gguf, made, form)
        for form in ("dense", *FORMS):
            found[f"gptq {name} {form}"] = partial(one.gptq, form)
        found[f"speed {name}"] = one.speed
    return found


class Bench(Measured):
    """One model in all its forms."""

    @property
    def place(self) -> Path:
        """Where what is made is kept."""
        return ROOT / "runs/export" / self.source.stem

    def perplexities(self, source: Path) -> dict:
        """Text -> perplexity."""
        model = open_model(source, FP32)
        return {name: perplexity(model, one).value for name, one in self.texts.items()}

    def dense(self) -> dict:
        """Perplexity of the model as it is."""
        found = {name: perplexity(self.model, one).value for name, one in self.texts.items()}
        record = self.model.record
        return {"perplexity": found, "bytes": self.source.stat().st_size, "layers": record.layers} | {
            "folder_bytes": record.weight_bytes,
            "types": record.packed_storage,
        }

    def choose(self) -> dict:
        """The layers that go, by Taylor+."""
        amount, lowest = Amount(ratio=self.settings["share"]), SelectionOptions("lowest")
        how = {"criterion": "taylor", "choosing": lowest, "calibration": self.calibration}
        return {"removed": plan(self.model, amount=amount, **how).removed}

    def inspect(self) -> dict:
        """Seconds and memory of ``inspect``, start-up included."""
        took = [self._command("inspect", self.source) for _ in range(self.settings["repeats"])]
        return {"seconds": [one[0] for one in took], "peak_memory_bytes": max(one[1] for one in took)}

    def _command(self, *arguments: Any) -> tuple[float, int]:
        command = [sys.executable, "-c", MEASURE, *map(str, arguments)]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return time.perf_counter() - started, 1024 * int(done.stdout.split()[-1])

    def copy(self, chosen: Callable[[], dict]) -> dict:
        """Seconds of pruning by copying against ``cp`` of the same bytes, in turns, and the proof.

        What we write is on the disk before success is told; so ``cp`` is timed with that too.
        """
        removed = ",".join(map(str, chosen()["removed"]))
        ours, inside, theirs, synced = [], [], [], []
        with tempfile.TemporaryDirectory(dir=self._folder()) as place:
            out, other = Path(place) / "small.gguf", Path(place) / "other.gguf"
            for _ in range(self.settings["repeats"]):
                out.unlink(missing_ok=True)
                other.unlink(missing_ok=True)
                seconds, peak = self._command(
                    "prune", self.source, "--drop", removed, "--out", out, "--no-verify", "--overwrite"
                )
                ours.append(seconds)
                inside.append(json.loads(out.with_name("small.gguf.json").read_text())["seconds"])
                started = time.perf_counter()
                subprocess.run(["cp", str(out), str(other)], check=True)
                theirs.append(time.perf_counter() - started)
                with other.open("rb+") as stream:
                    os.fsync(stream.fileno())
                synced.append(time.perf_counter() - started)
            proof = prune_gguf(self.source, drop_gguf(self.source, removed), out=Path(place) / "proven.gguf").proof
            size = out.stat().st_size
        return {
            "command": ours,
            "writing": inside,
            "cp": theirs,
            "cp_synced": synced,
            "bytes": size,
            "peak_memory_bytes": peak,
        } | {"proof": {"by": proof.by, "difference": proof.difference, "prompts": proof.prompts}}

    def _folder(self) -> Path:
        self.place.mkdir(parents=True, exist_ok=True)
        return self.place

    def folder(self, chosen: Callable[[], dict], form: str) -> dict:
        """Perplexity of a plain checkpoint in bfloat16, as it is or repaired."""
        samples, length = self.settings["fitting"]
        how = (
            RepairOptions("sequential", {}, Calibration(samples=samples, length=length)) if form == "repaired" else None
        )
        out = self._folder() / form
        gone = drop(self.model, chosen()["removed"])
        prune(self.model, gone, out=out, verify=False, save_dtype="bf16", compensating=how, overwrite=out.exists())
        return {"perplexity": self.perplexities(out), "bytes": _bytes(out)}

    def gguf(self, made: Callable[[], dict], form: str) -> dict:
        """The same as a .gguf file: weights that did not change are the file's own, the others are Q8_0."""
        made()
        out = self.place / f"{form}.gguf"
        found = export(self.place / form, out=out, like=self.source, type="q8_0", overwrite=out.exists())
        return {
            "perplexity": self.perplexities(out),
            "bytes": found.bytes,
            "remade": found.copied.remade,
            "divergence": found.proof.divergence,
            "rounded": found.proof.rounded,
        }

    def gptq(self, form: str) -> dict:
        """Four bits by GPTQ: perplexity, bytes and seconds."""
        samples, length = self.settings["gptq"]
        source, out = self.place / form, self.place / f"{form}-gptq"
        if form == "dense" and not source.is_dir():
            source = self._dense_folder()
        text = Calibration(text=str(self.data / CALIBRATION), samples=samples, length=length)
        found = quantize(source, out=out, calibration=text, overwrite=out.exists())
        return {"perplexity": self.perplexities(out), "bytes": _bytes(out), "seconds": found.seconds} | {
            "group_size": found.group_size,
            "bits": found.bits,
        }

    def _dense_folder(self) -> Path:
        """The dense model as a folder in bfloat16."""
        out = self._folder() / "dense"
        module = open_model(self.source, dtype="bf16", device="cpu").module
        module.save_pretrained(out)
        self.model.tokenizer.save_pretrained(out)
        return out

    def speed(self) -> dict:
        """Tokens per second in llama.cpp, all files in turns."""
        files = {"dense": self.source} | {form: self.place / f"{form}.gguf" for form in FORMS}
        found: dict[str, list] = {name: [] for name in files}
        for _ in range(self.settings["repeats"]):
            for name, file in files.items():
                command = [
                    sys.executable,
                    "-c",
                    SPEED,
                    str(file),
                    str(self.settings["prompt"]),
                    str(self.settings["new"]),
                ]
                done = subprocess.run(command, capture_output=True, text=True, check=True)
                found[name].append(json.loads(done.stdout.splitlines()[-1]))
        return {
            name: {
                "prefill": statistics.median(one[0] for one in each),
                "decode": statistics.median(one[1] for one in each),
            }
            for name, each in found.items()
        }


def _bytes(folder: Path) -> int:
    """Bytes of the weights of a folder."""
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


if __name__ == "__main__":
    run(__doc__, "export", beside=f"text/{CALIBRATION}", settings=(FULL, QUICK), about=about, jobs=jobs, table=table)

"""Quantisation: a plain checkpoint rounded to few bits by llm-compressor in an environment of its own, and what it
costs, measured on the written files.
"""

import copy
import json
import math
import shutil
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..anatomy.config_file import say_stored_as
from ..anatomy.custom import is_custom
from ..anatomy.loading import Checkpoint
from ..anatomy.model import SIDE_FILE, Model
from ..anatomy.quantised import FIELDS, refuse
from ..anatomy.sources import open_checkpoint
from ..artifacts import QuantisationProof, Quantised, dumps, load, published
from ..data.readers import check_readable
from ..data.tokens import CalibrationSamples, calibration_samples
from ..errors import Refusal, UserError, argument
from ..reporting.card import write_card
from ..runtime.memory import total_memory
from ..runtime.progress import parts, say
from ..settings.calibration import Calibration, calibration_of
from ..settings.compute import Compute
from ..settings.quantisation import GROUP_SIZES, Quantisation
from ..storage.files import check_space, new_folder
from ..storage.gguf import SUFFIX
from ..storage.hashes import file_hashes, remember
from ..storage.index import INDEX
from ..storage.ownership import check_free
from ..storage.paths import files_below, parse_json, place, short_list
from ..surgery.llm_compressor import Environment, environment, run_job
from ..surgery.side_files import carry_side_files
from .common import resolve_settings

RECORD = "quantised.json"
CARRIED_FILES = ("compensation.json", "compensation.png")  # of the same model, as it was before
HELD_OUT = 8  # one sample in so many, of the last ones, is compared on and not seen by the method
MOST_HELD_OUT = 2048  # tokens, each with the log-probabilities of the whole vocabulary in memory
LEAST_SHARE = 0.9  # of the numbers in the layers' matrices that have to lie in projections which can be quantised
LARGEST_RATIO, LARGEST_DIVERGENCE = 10.0, 3.0  # perplexity, and KL in nats per token: beyond is a broken file
DTYPE = torch.bfloat16
SHARD = "5GB"
PACKED = ".weight_packed"  # behind the name of a projection whose weight is packed
FLOAT32_SHARE = 0.6  # of the memory that the model in float32 may take where both are compared in it


def quantize(
    model: str | Path,
    *,
    out: str | Path,
    settings: Quantisation | None = None,
    calibration: Calibration | None = None,
    compute: Compute | None = None,
    **plain: Any,
) -> Quantised:
    """Quantise the projections of all layers and write the model as compressed-tensors; it appears at ``out`` only when
    complete, and when the written files, loaded with plain weights, give finite numbers near the model's own.

    Example: ``shallower.quantize("my-model-shallow", out="small", python="quantize-env/bin/python")``.

    Args:
        model: a folder in a plain form, or a Hub id.
        settings: or its fields as keywords, as those of ``calibration``.
        compute: only its ``trust_remote_code`` counts; llm-compressor takes a GPU by itself where it sees one.
    Raises:
        UserError: no llm-compressor, a model that it does not take, too few samples, or a result that is far off;
            nothing is left at ``out``.
    """
    settings, calibration, compute = resolve_settings(
        plain,
        "quantize",
        settings=(Quantisation, settings),
        calibration=(Calibration, calibration_of(calibration)),
        compute=(Compute, compute),
    )
    out = place(out)
    if place(model).suffix == SUFFIX and not place(model).is_dir():
        raise Refusal(
            f"{model} is a {SUFFIX} file, which llama.cpp quantises into types of its own: export the plain model, or "
            "give its folder here"
        )
    check_free(out, overwrite=settings.overwrite, inputs=[model, *calibration.files])
    check_readable(calibration.texts)
    opened = Model(model, trust_remote_code=compute.trust_remote_code, device="cpu", layered=False)
    job = _Job.checked(opened, settings, calibration, out)
    with parts({"quantise": 5.0, "compare": 1.0}) as part, job.new_folder() as folder:
        with part("quantise"):
            written, left, seconds = job.quantise(folder)
        with part("compare"):
            proof, proof_seconds = job.prove(folder)
        times = {"seconds": seconds, "proof_seconds": proof_seconds}
        result = job.record(written, proof, left_behind=left, **times)
        result = job.put_beside(folder, result)
    remember({out / path.relative_to(folder): digest for path, digest in written.hashes.items()})
    if left:
        say(f"left behind, as nothing tells whether they hold for the quantised model: {short_list(left)}")
    return result


@dataclass(frozen=True)
class _Job:
    """A quantisation that may go ahead: the model, what of it is rounded, on what, and where.

    Attributes:
        ignored: projections outside the layers.
        held_out: samples at the end that the method does not see.
    """

    model: Model
    settings: Quantisation
    environment: Environment
    samples: CalibrationSamples
    projections: dict[str, nn.Linear]
    ignored: list[str]
    group_size: int
    held_out: int
    out: Path
    inputs: list[Any]

    @staticmethod
    def checked(model: Model, settings: Quantisation, calibration: Calibration, out: Path) -> "_Job":
        """The job, all that may be refused being refused before any work."""
        _check_plain(model)
        projections, ignored = _projections(model)
        group_size = _group_size(settings, projections)
        found = environment(settings.python)
        known = model.checkpoint.positions
        samples = calibration_samples(calibration, lambda: model.tokenizer, model.vocabulary)
        count, length = samples.tokens.shape
        if known and length > known:
            raise UserError(f"the model was made for at most {known} positions; lower it", length=length)
        if count < 2:
            raise UserError(
                f"{settings.method} needs calibration text, and one more sample to compare on: at least 2 are needed",
                samples=count,
            )
        held_out = max(1, min(count // HELD_OUT, MOST_HELD_OUT // length))
        folder = model.checkpoint.folder
        inputs = [folder, *folder.iterdir(), *calibration.files]
        return _Job(model, settings, found, samples, projections, ignored, group_size, held_out, out, inputs)

    def new_folder(self) -> AbstractContextManager[Path]:
        """The folder that takes the output's place when all is done."""
        return new_folder(self.out, overwrite=self.settings.overwrite, inputs=self.inputs)

    @property
    def fitted(self) -> Tensor:
        return self.samples.tokens[: -self.held_out]

    def quantise(self, folder: Path) -> tuple[Checkpoint, list[str], float]:
        """Put the quantised files into a folder: (what is read there, side files left behind, seconds)."""
        started = time.monotonic()
        settings, checkpoint = self.settings, self.model.checkpoint
        chosen = "" if settings.group_size else " (the largest that divides all input widths)"
        say(f"{len(self.projections)} projections to {settings.bits} bits, groups of {self.group_size}{chosen}")
        say(f"by {self.environment.label}")
        check_space(self.out, checkpoint.bytes)
        with _workplace(folder) as work:
            made = work / "model"
            asked = {"method": settings.method, "bits": settings.bits, "group_size": self.group_size}
            asked |= {"ignore": self.ignored, "out": str(made), "max_shard_size": SHARD}
            self._run(work, "quantise", self.fitted, str(DTYPE).removeprefix("torch."), asked)
            config = _quantised_config(checkpoint, made)
            for path in sorted([*made.glob("*.safetensors"), *made.glob(INDEX)]):
                path.replace(folder / path.name)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        left = carry_side_files(checkpoint.folder, folder, python=checkpoint.trust_remote_code)
        written = open_checkpoint(folder, trust_remote_code=checkpoint.trust_remote_code)
        files = {entry.file for entry in written.tensors.values()}
        written = replace(written, hashes=file_hashes(sorted(files)))
        packed = sum(name.endswith(PACKED) for name in written.tensors)
        if packed != len(self.projections):
            raise Refusal(
                f"llm-compressor has packed {packed} weights of {len(self.projections)} projections: its version "
                f"({self.environment.label}) takes this model for something else"
            )
        return written, left, time.monotonic() - started

    def prove(self, folder: Path) -> tuple[QuantisationProof, float]:
        """What the written files give on the held-out samples, and the seconds that it took to find out.

        Raises:
            UserError: numbers that are not finite, or far from the model's own.
        """
        started = time.monotonic()
        wide = 4 * self.model.record.parameters <= FLOAT32_SHARE * total_memory()
        dtype = "float32" if wide else "bfloat16"
        held_out = self.samples.tokens[-self.held_out :]
        with _workplace(folder) as work:
            found = self._run(work, "prove", held_out, dtype, {"out": str(folder)})
        names = ("divergence", "nll_before", "nll_after", "same_next")
        values = [found.get(name) for name in names]
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            raise UserError("the quantised model yields numbers that are not finite: nothing was kept")
        divergence, before, after, same = map(float, values)
        ratio = math.exp(min(after - before, 100.0))
        if divergence > LARGEST_DIVERGENCE or ratio > LARGEST_RATIO:
            raise UserError(
                f"the quantised model is far from the model (KL {divergence:.3g} nats per token, perplexity x "
                f"{ratio:.3g} on held-out samples), so nothing was kept: give {argument('bits', 8)}, a smaller "
                f"{argument('group_size')}, or more calibration text like that which it is for"
            )
        proof = QuantisationProof(
            by=self.environment.label,
            dtype=dtype,
            tokens=held_out.numel(),
            divergence=max(0.0, divergence),
            perplexity_before=math.exp(before),
            perplexity_after=math.exp(after),
            same_next=same,
        )
        return proof, time.monotonic() - started

    def _run(self, work: Path, do: str, tokens: Tensor, dtype: str, more: dict[str, Any]) -> dict[str, Any]:
        """Answer of the environment to a job whose own files lie in ``work``."""
        checkpoint = self.model.checkpoint
        np.save(work / "tokens.npy", tokens.numpy().astype(np.int64), allow_pickle=False)
        job = {"do": do, "model": str(checkpoint.folder.absolute()), "tokens": str(work / "tokens.npy")}
        job |= {"dtype": dtype, "trust_remote_code": checkpoint.trust_remote_code} | more
        what = "quantising" if do == "quantise" else "comparing with the quantised model"
        return run_job(self.environment, job, work, f"{what} {checkpoint.source}")

    def record(self, written: Checkpoint, proof: QuantisationProof, **more: Any) -> Quantised:
        """Record of what was done."""
        settings = self.settings
        return Quantised(
            model=self.model.record,
            method=settings.method,
            bits=settings.bits,
            group_size=self.group_size,
            group_size_chosen=settings.group_size is None,
            projections=len(self.projections),
            left=self.ignored,
            dtype=str(DTYPE).removeprefix("torch."),
            calibration=self.samples.record,
            fitted_tokens=self.fitted.numel(),
            weight_bytes_before=self.model.checkpoint.bytes,
            weight_bytes=written.bytes,
            proof=proof,
            environment=self.environment.versions,
            fingerprint=written.fingerprint,
            **more,
        )

    def put_beside(self, folder: Path, result: Quantised) -> Quantised:
        """Put the record beside the weights, and of a pruned model its own carried on, with the card made anew."""
        source = self.model.checkpoint.folder
        for name in CARRIED_FILES:
            if (source / name).is_file():
                shutil.copyfile(source / name, folder / name)
        pruned = load(source / SIDE_FILE, "pruned") if (source / SIDE_FILE).is_file() else None
        if pruned is not None:
            kept = {"fingerprint": result.fingerprint, "weight_bytes": result.weight_bytes}
            pruned = replace(pruned, **kept, left_behind=result.left_behind, quantised=result.report())
            write_card(folder, pruned, name=self.out.resolve().name, source=source)
        names = {path.relative_to(folder).as_posix() for path in files_below(folder)} | {RECORD}
        names |= {SIDE_FILE} if pruned is not None else set()
        result = published(replace(result, files=sorted(names)))
        (folder / RECORD).write_text(dumps(result), encoding="utf-8")
        if pruned is not None:
            pruned = published(replace(pruned, files=sorted(names)))
            (folder / SIDE_FILE).write_text(dumps(pruned), encoding="utf-8")
        return result


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder for a job's own files, on the same disk as the output, gone afterwards."""
    work = folder.absolute() / ".work"
    work.mkdir()
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _check_plain(model: Model) -> None:
    """Raise a UserError for what cannot be quantised so that others load it."""
    checkpoint = model.checkpoint
    if is_custom(checkpoint.raw):
        raise Refusal(
            f"{checkpoint.source} is in a form with code of its own beside the weights, which no runtime of quantised "
            "models knows: remove whole layers, or make all layers alike narrower"
        )
    why = "what is rounded already cannot be rounded anew: give the unquantised model"
    refuse(checkpoint.source, checkpoint.quantised, why)
    if getattr(checkpoint.config, "is_decoder", None) is False:
        _ = model.module  # loading tells an encoder from a decoder; this config alone does not
        model.unload()


def _projections(model: Model) -> tuple[dict[str, nn.Linear], list[str]]:
    """(plain linear projections of the layers by name, names of the others).

    Raises:
        Refusal: too much of the layers lies elsewhere, such as in experts that are one tensor.
    """
    shapes, stack = model.checkpoint.shapes, model.outline.name
    linear = {name: module for name, module in shapes.named_modules() if type(module) is nn.Linear}
    inside = {name: module for name, module in linear.items() if name.startswith(f"{stack}.")}
    layers = shapes.get_submodule(stack)
    matrices = sum(parameter.numel() for parameter in layers.parameters() if parameter.dim() > 1)
    found = sum(module.weight.numel() for module in inside.values())
    if not found or found < LEAST_SHARE * matrices:
        raise Refusal(
            f"{found / max(1, matrices):.0%} of the numbers in the layers' matrices of {model.checkpoint.source} lie "
            "in plain linear projections, which is all that llm-compressor rounds here: for this family quantise with "
            "the runtime's own tools"
        )
    return inside, sorted(set(linear) - set(inside))


def _group_size(settings: Quantisation, projections: dict[str, nn.Linear]) -> int:
    """The group size that is asked for, or the largest that divides all input widths.

    Raises:
        UserError: it divides not all; names the widths.
    """
    widths = sorted({module.in_features for module in projections.values()})
    sizes = (settings.group_size,) if settings.group_size else GROUP_SIZES
    fits = next((size for size in sizes if all(width % size == 0 for width in widths)), None)
    if fits is not None:
        return fits
    odd = ", ".join(str(width) for width in widths if width % sizes[-1])
    hint = f"give a {argument('group_size')} that divides them, or prune to multiples of {GROUP_SIZES[-1]}"
    given = {"group_size": settings.group_size} if settings.group_size else {}
    raise UserError(f"the input widths {odd} are no multiples of {sizes[-1]}: {hint}", **given)


def _quantised_config(checkpoint: Checkpoint, made: Path) -> dict[str, Any]:
    """Content of the config.json: the model's own, with what was written as the quantisation."""
    path = made / "config.json"
    content = parse_json(path.read_bytes(), str(path)) if path.is_file() else {}
    quantised = content.get(FIELDS[0]) if isinstance(content, dict) else None
    if not isinstance(quantised, dict):
        raise UserError("llm-compressor has written no quantisation config, so nothing was kept")
    config = copy.deepcopy(checkpoint.raw) | {FIELDS[0]: quantised}
    say_stored_as(config, DTYPE)
    return config

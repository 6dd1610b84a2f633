"""Training what is left: heal."""

import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from .. import methods, ranks
from ..anatomy.loading import FLOATS, Checkpoint, hub_of, open_checkpoint, parse_dtype, quiet
from ..anatomy.model import SIDE_FILE, Model
from ..anatomy.stack import dry_tokens
from ..artifacts import Healing, dumps, load
from ..errors import UserError
from ..evaluation.perplexity import Protocol, Segments, evaluation_segments, perplexity_of
from ..files import check_free, new_folder
from ..memory import Peak
from ..progress import say
from ..proof import TOLERANCE
from ..reporting.card import write_card
from ..reporting.figures import learning
from ..runs import load_weights
from ..surgery import copy_side_files
from ..tables import losses, millions
from ..training.checkpoints import Keeper
from ..training.data import Packed, packed, read_documents
from ..training.loop import Run, train
from ..training.objective import Objective, isolates
from ..training.schedule import Schedule, count_of, fitted
from .opening import Compute, Source

MICRO_TOKENS = {"cpu": 1024, "cuda": 16384}  # run through the model at once, unless it is said otherwise
EVAL_TOKENS = 20_000
PROBE = (2, 32)
CARRIED = ("compensation.json", "compensation.png")  # of the same model, as it was before


@dataclass(frozen=True)
class Training:
    """How to train, where it is not as the method's recipe says.

    Attributes:
        length: tokens per sequence.
        seed: the order of the data, dropout and the adapters' start.
        batch_tokens: tokens of the global batch; None: the recipe's, or less where the budget is small.
        micro_batch: sequences run through the model at once; None follows from the device.
        lr: peak learning rate; None: the recipe's.
        checkpoint_steps: a checkpoint after so many steps; one is written every ``checkpoint_minutes`` in any case.
        resume: go on from the checkpoint that an interrupted run to the same output left.
        eval_texts: files whose perplexity is measured before, after, and every ``eval_steps`` (None: ten times in all).
        eval_tokens: how much of the start of each.
        gradient_checkpointing: compute each layer twice rather than keep what is inside it.
    """

    length: int = 512
    seed: int = 1234
    batch_tokens: int | None = None
    micro_batch: int | None = None
    lr: float | None = None
    checkpoint_steps: int | None = None
    checkpoint_minutes: float = 10.0
    resume: bool = False
    eval_texts: Sequence[str | Path] = ()
    eval_steps: int | None = None
    eval_tokens: int | None = EVAL_TOKENS
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "micro_batch", "checkpoint_steps", "eval_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError(f"--{name.replace('_', '-')} {getattr(self, name)}: 1 or more")
        if self.length < 8:
            raise UserError(f"--length {self.length}: at least 8 tokens are needed")
        if self.batch_tokens is not None and self.batch_tokens < self.length:
            raise UserError(f"--batch-tokens {self.batch_tokens}: at least one sequence of --length {self.length} is needed")
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError(f"--lr {self.lr}: a number above 0, such as 1e-4")
        if self.seed < 0:
            raise UserError(f"--seed {self.seed}: 0 or more")


def heal(
    model: Source,
    *,
    data: Sequence[str | Path],
    train_tokens: int | str,
    out: str | Path,
    method: str = "lora",
    settings: dict[str, str] | None = None,
    training: Training | None = None,
    compute: Compute | None = None,
    overwrite: bool = False,
) -> Healing:
    """Train a model further and write it as a plain checkpoint; it appears at ``out`` only when complete and reloaded.

    Args:
        data: .txt, .jsonl or .parquet files: documents, or Alpaca-format examples (see ``training.data``).
        train_tokens: the budget, repetitions counted, such as ``20M``.
        method: a name from ``methods.names("healing")``; ``settings`` are its own.
        compute: its dtype is that of the products; weights and the optimiser's state are fp32.
    Raises:
        UserError: bad data, a loss that is not finite or diverges, another run's checkpoint; nothing is left at ``out``.
    """
    check_free(out, overwrite=overwrite)
    way, training, budget, out = methods.find("healing", method), training or Training(), count_of(train_tokens), Path(out)
    own = methods.configure(way, settings or {})
    opened, bf16 = _opened(model, compute or Compute(), out)
    documents = read_documents(data, opened.tokenizer, opened.vocabulary)
    texts = evaluation_segments(opened, training.eval_texts, None, _protocol(training)) if training.eval_texts else {}
    load_weights(opened)
    apart = isolates(opened.module)
    sequences = packed(documents, training.length, training.seed, apart=apart)
    recipe = way.recipe(own) if training.lr is None else replace(way.recipe(own), lr=training.lr)
    schedule, changed = fitted(recipe, budget, sequences.about["length"], training.batch_tokens)
    if schedule.batch < ranks.size():
        raise UserError(f"a batch of {schedule.batch} sequences cannot be split among {ranks.size()} processes: raise --batch-tokens")
    torch.manual_seed(training.seed)  # adapters start at random
    prepared = way.prepare(opened.module, opened.outline.name, own)
    if training.gradient_checkpointing:
        opened.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    key = {
        "method": method,
        "settings": vars(own),
        "model": opened.record.fingerprint,
        "data": sequences.about["hash"],
        "steps": schedule.steps,
    }
    key |= {"recipe": asdict(schedule.recipe), "batch": schedule.batch, "length": schedule.length, "seed": training.seed, "bf16": bf16}
    run = _run(opened, sequences, schedule, training, Keeper(out, key), apart=apart, bf16=bf16)
    run.watch = _watcher(opened, texts, run.micro, bf16)
    _announce(opened, run, changed)
    with run.keeper.claimed(resume=training.resume):
        with Peak(opened.device) as peak:
            trained = train(run)
        result = Healing(
            method=method,
            settings=vars(own),
            recipe=asdict(schedule.recipe),
            model=opened.record,
            fingerprint="",
            data=sequences.about,
            train_tokens=schedule.steps * schedule.batch * schedule.length,
            steps=schedule.steps,
            batch_tokens=schedule.batch * schedule.length,
            micro_batch=run.micro,
            processes=ranks.size(),
            trained_parameters=_trained(opened),
            rows=trained.rows,
            reloaded={},
            seconds=trained.seconds,
            peak_memory_bytes=peak.bytes,
            dtype="bfloat16" if bf16 else "float32",
        )
        if ranks.rank() == 0:
            result = _written(opened, result, lambda folder: way.finish(prepared, folder), out, overwrite=overwrite)
        result = ranks.gathered(result)[0]
    return result


def _opened(source: Source, compute: Compute, out: Path) -> tuple[Model, bool]:
    """The model in fp32, its own copy of the weights, and whether products are to be in bf16."""
    given = source.checkpoint if isinstance(source, Model) else None
    trust = compute.trust_remote_code or bool(given and given.trust_remote_code)
    opened = Model(given.source if given else source, dtype="fp32", device=compute.device, trust_remote_code=trust, layered=compute.layered)
    if opened.checkpoint.folder.resolve().is_relative_to(out.resolve()):
        raise UserError(f"--out {out} is or holds the model itself; give another folder")
    if getattr(opened.checkpoint.config, "quantization_config", None):
        raise UserError(f"{opened.checkpoint.source} is quantised; heal the model before it is quantised")
    if opened.layered:
        raise UserError(f"{opened.checkpoint.source} does not fit into memory in fp32, which training needs: take a larger machine")
    wanted = parse_dtype(compute.dtype) or (torch.bfloat16 if opened.device.startswith("cuda") else torch.float32)
    if wanted == torch.float16:
        raise UserError("--dtype fp16: its gradients vanish without scaling; train in bf16 or fp32")
    return opened, wanted == torch.bfloat16


def _protocol(training: Training) -> Protocol:
    most = training.eval_tokens
    return Protocol(length=training.length, max_tokens=max(most, training.length) if most else None)


def _run(model: Model, data: Packed, schedule: Schedule, training: Training, keeper: Keeper, *, apart: bool, bf16: bool) -> Run:
    kind = "cuda" if model.device.startswith("cuda") else "cpu"
    return Run(
        model=model.module,
        data=data,
        schedule=schedule,
        keeper=keeper,
        device=model.device,
        apart=apart,
        micro=min(training.micro_batch or max(1, MICRO_TOKENS[kind] // schedule.length), schedule.batch),
        seed=training.seed,
        bf16=bf16,
        checkpoint_steps=training.checkpoint_steps,
        checkpoint_minutes=training.checkpoint_minutes,
        watch_steps=training.eval_steps or max(1, schedule.steps // 10),
    )


def _trained(model: Model) -> int:
    return sum(parameter.numel() for parameter in model.module.parameters() if parameter.requires_grad)


def _announce(model: Model, run: Run, changed: list[str]) -> None:
    """The plan, on stderr, before the first step."""
    every, trained = sum(parameter.numel() for parameter in model.module.parameters()), _trained(model)
    schedule, about = run.schedule, run.data.about
    moments = 2 if schedule.recipe.optimizer == "adamw" else 1
    needed = (4 * every + 4 * (1 + moments) * trained) / 2**30
    say(f"trains {millions(trained)} of {millions(every)} parameters; {needed:.2f} GiB for weights, gradients, optimiser, plus activations")
    kind = "examples" if about["kind"] == "instructions" else "documents"
    passes = schedule.steps * schedule.batch / about["sequences"]
    say(
        f"{schedule.steps} steps of {schedule.batch} x {schedule.length} tokens, {run.micro} at once, {ranks.size()} processes; "
        f"{about['documents']} {kind}, {millions(about['tokens'])} tokens, {passes:.2f} passes"
    )
    for line in changed:
        say(f"smaller than the recipe: {line}")
    if about["dropped"]:
        say(f"{about['dropped']} examples have no answer within the cut-off and are left out")
    if not run.apart:
        say(
            "this model does not keep documents of one row apart: "
            + ("examples are padded" if about["kind"] == "instructions" else "they see what stands before")
        )


def _watcher(model: Model, texts: dict[str, Segments], micro: int, bf16: bool) -> Callable[[int], dict[str, Any]]:
    """step -> perplexity of every text, each process taking a share of the segments."""

    @torch.no_grad()
    def watch(step: int) -> dict[str, Any]:
        found, objective = {}, Objective(model.module) if texts else None
        model.module.eval()
        for name, segments in texts.items():
            total, count = torch.zeros(2, dtype=torch.float64)
            mine = segments.tokens[ranks.rank() :: ranks.size()]
            for rows in mine.split(micro):
                bearing = torch.ones_like(rows, dtype=torch.bool)
                with torch.autocast(torch.device(model.device).type, torch.bfloat16, enabled=bf16):
                    total += objective(rows.to(model.device), None, bearing.to(model.device)).double().cpu()
                count += rows[:, 1:].numel()
            nll = float(ranks.added(total)) / float(ranks.added(count))
            found[name] = {"nll": nll, "value": perplexity_of(nll), "tokens": segments.tokens[:, 1:].numel()}
            say(f"step {step}: perplexity {name} {found[name]['value']:.3f}")
        return {"eval": found} if found else {}

    return watch


def _written(model: Model, result: Healing, finish: Callable[[Path], None], out: Path, *, overwrite: bool) -> Healing:
    """Write the model, reload it, and put what is known of it beside it."""
    checkpoint, module = model.checkpoint, model.module
    with new_folder(out, overwrite=overwrite) as folder:
        finish(folder)
        module.requires_grad_(False).eval()
        kind = _stored(checkpoint)
        for tensor in module.parameters():
            tensor.data = tensor.data.to(kind)
        with quiet():
            module.save_pretrained(folder)
        copy_side_files(checkpoint.folder, folder, python=checkpoint.trust_remote_code)
        shutil.copyfile(checkpoint.folder / "config.json", folder / "config.json")
        for path in folder.rglob("*.safetensors"):  # written for the owner's eyes only
            path.chmod((folder / "config.json").stat().st_mode)
        for name in CARRIED:
            if (checkpoint.folder / name).is_file():
                shutil.copyfile(checkpoint.folder / name, folder / name)
        written = open_checkpoint(folder, trust_remote_code=checkpoint.trust_remote_code)
        result = replace(result, fingerprint=written.fingerprint, reloaded=_reloaded(model, written))
        (folder / "healing.json").write_text(dumps(result), encoding="utf-8")
        (folder / "healing.png").write_bytes(learning(result).png())
        _carry(checkpoint, result, folder, out)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in result.rows), encoding="utf-8")
    return result


def _stored(checkpoint: Checkpoint) -> torch.dtype:
    """What most of the model's weights are stored in."""
    sizes: dict[torch.dtype, int] = {}
    for entry in checkpoint.tensors.values():
        if entry.dtype in FLOATS:
            sizes[FLOATS[entry.dtype]] = sizes.get(FLOATS[entry.dtype], 0) + entry.count
    return max(sizes, key=sizes.get, default=torch.float32)


@torch.no_grad()
def _reloaded(model: Model, written: Checkpoint) -> dict[str, Any]:
    """How far the logits of the written files, loaded the ordinary way, are from those of the trained model.

    Raises:
        UserError: further than its dtype explains, or weights are missing; nothing is kept.
    """
    tokens = dry_tokens(model.vocabulary, *PROBE).to(model.device)
    wanted = model.module(input_ids=tokens, use_cache=False).logits
    got = written.load(device=model.device)(input_ids=tokens, use_cache=False).logits
    difference = float((wanted.float() - got.float()).abs().max() / wanted.float().abs().max())
    allowed = TOLERANCE.get(got.dtype, 1e-4)
    if not difference <= allowed:
        raise UserError(f"the written model is not the trained one (logits differ by {difference:.2g} of the largest): nothing was kept")
    exact = torch.equal(wanted, got)
    return {"logits": "bit for bit" if exact else f"within {allowed:g} of the largest logit", "difference": difference}


def _carry(checkpoint: Checkpoint, result: Healing, folder: Path, out: Path) -> None:
    """Carry ``shallower.json`` on, if the model was pruned, and make its card anew."""
    side = checkpoint.folder / SIDE_FILE
    if not side.is_file():
        return
    pruned, (first, last) = load(side, "pruned"), losses(result)
    told = {"method": result.method, "settings": result.settings, "source": result.data["source"], "hash": result.data["hash"]}
    told |= {"train_tokens": result.train_tokens, "steps": result.steps, "loss": {"first": first, "last": last}}
    told["reloaded"] = result.reloaded["logits"]
    pruned = replace(pruned, fingerprint=result.fingerprint, healing=[*pruned.healing, told])
    (folder / SIDE_FILE).write_text(dumps(pruned), encoding="utf-8")
    write_card(folder, pruned, out.resolve().name, source=checkpoint.folder, hub_id=hub_of(pruned.plan.model.source))

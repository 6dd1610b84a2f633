"""Training what is left: heal."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from .. import methods, ranks
from ..anatomy.loading import parse_dtype
from ..anatomy.model import Model, checked_device
from ..anatomy.quantised import refuse
from ..anatomy.stack import parameter_count
from ..artifacts import Healing
from ..data.packing import Documents, Packed, packed, read_documents, streamed
from ..data.readers import check_readable
from ..data.streams import Stream
from ..errors import UserError
from ..evaluation.perplexity import Segments, evaluation_segments, perplexity_of
from ..files import check_apart, check_free, place
from ..format import byte_count, millions
from ..memory import Peak, total_memory
from ..progress import say
from ..quantities import tokens_of
from ..runs import load_weights
from ..settings.calibration import Paths, listed_paths
from ..settings.compute import Compute
from ..settings.evaluation import Protocol
from ..settings.training import Training
from ..training.checkpoints import Keeper
from ..training.distillation import Distillation, shared
from ..training.loop import Run, tracker_of, train
from ..training.objective import Objective, activation_bytes, isolates
from ..training.schedule import Schedule, fitted
from ..training.sharding import by_hand, launched, shard_layers
from .common import Source, taken
from .lineage import state_from, unpruned
from .trained import Writing, write_healed

MICRO_TOKENS = {"cpu": 1024, "cuda": 65536}  # run through the model at once, at most, unless it is said otherwise
FILLED = 0.85  # of a GPU's memory that weights, gradients, optimiser and activations may take
MOMENTS = {"adamw": 8, "lion": 4, "adamw8bit": 2}  # bytes that an optimiser keeps of a parameter


@by_hand()
def heal(
    model: Source,
    *,
    data: Paths = (),
    dataset: str | None = None,
    train_tokens: int | str,
    out: str | Path,
    method: str = "lora",
    settings: dict[str, str] | None = None,
    training: Training | None = None,
    compute: Compute | None = None,
    overwrite: bool = False,
    **plain: Any,
) -> Healing:
    """Train a model further and write it as a plain checkpoint; it appears at ``out`` only when complete and reloaded.

    Example: ``shallower.heal("pruned", data="book.txt", train_tokens="20M", method="continued", out="healed")``.

    Args:
        data: .txt, .jsonl or .parquet files: documents, or Alpaca-format examples (see ``training.data``).
        dataset: instead of files, one of the Hub as ``NAME[:CONFIG[:SPLIT]]``, of which only as much is read as the budget needs.
        train_tokens: the budget, repetitions counted, such as ``20M``.
        method: a name from ``methods.names("healing")``; ``settings`` are its own.
        compute: its dtype is that of the products; weights and the optimiser's state are fp32.
    Raises:
        UserError: bad data, a loss that is not finite or diverges, another run's checkpoint; nothing is left at ``out``.
    """
    training, compute = taken(plain, "heal", training=(Training, training), compute=(Compute, compute))
    data, out = listed_paths(data), place(out)
    inputs = [*data, *training.eval_texts, training.optimizer_from, None if isinstance(model, Model) else model]
    check_free(out, overwrite=overwrite, inputs=inputs)
    check_readable(data, "--data")
    check_readable(training.eval_texts, "--eval-text")
    way, budget = methods.find("healing", method), tokens_of(train_tokens, "--train-tokens")
    own = methods.configure(way, settings or {})
    device = checked_device(compute.device)
    bf16 = _bf16(compute, device)
    if launched():
        training = replace(training, shard=True)
    if training.shard:
        if ranks.size() < 2:
            raise UserError("--shard splits the model among processes; there is one process: start several by torchrun")
        compute = replace(compute, device="cpu")  # from there each process takes its part
    opened = _opened(model, compute, out)
    teacher = None
    if hasattr(way, "teaching"):
        way.teaching(own)  # refuses what cannot be before anything is loaded
        teacher = unpruned(opened, own.teacher, compute, "fp32" if _frozen(own) or not bf16 else "bf16")
    dense = unpruned(opened, getattr(own, "teacher", ""), compute, "fp32") if training.control else None
    documents = _documents(opened, data, dataset, budget, training.seed)
    texts = evaluation_segments(opened, training.eval_texts, None, _protocol(training)) if training.eval_texts else {}
    if dense and not texts:
        raise UserError("--control: the unpruned model is held against the healed one on --eval-text; give at least one file")
    load_weights(opened)
    apart = isolates(opened.module)
    how = {"length": training.length, "seed": training.seed, "apart": apart}
    sequences = packed(documents, **how) if documents else Stream(dataset, opened.tokenizer, opened.vocabulary, **how)
    recipe = way.recipe(own) if training.lr is None else replace(way.recipe(own), lr=training.lr)
    schedule, changed = fitted(recipe, budget, sequences.about["length"], training.batch_tokens)
    _check_batch(schedule, shard=training.shard)
    tracker = tracker_of(training.track, out)
    earlier, state = state_from(training.optimizer_from, opened, schedule.recipe)
    key = {"method": method, "settings": vars(own), "model": opened.record.fingerprint, "data": sequences.about["hash"]}
    key |= {"steps": schedule.steps, "recipe": asdict(schedule.recipe), "batch": schedule.batch, "length": schedule.length}
    key |= {"seed": training.seed, "bf16": bf16}
    key |= {"eval_texts": {name: one.description["hash"] for name, one in texts.items()}, "eval_steps": _eval_steps(training, schedule)}
    key |= {"teacher": teacher.record.fingerprint} if teacher else {}
    key |= {"optimizer": earlier} if earlier else {}
    common = Common(sequences, schedule, training, texts, device, apart=apart, bf16=bf16)
    keeper = Keeper(out, key)
    with keeper.claimed(resume=training.resume):
        control = None
        if dense:
            opened.unload()
            control = _control(dense, way, own, common, keeper, Keeper(out.with_name(f"{out.name}.control"), key | {"control": True}))
            load_weights(opened)
        prepared, run = _prepared(opened, way, own, common, keeper, teacher)
        run.state, run.tracker = state, tracker
        _announce(opened, run, changed, teacher)
        count = sum(parameter.numel() for parameter in opened.module.parameters() if parameter.requires_grad)
        with Peak(device) as peak:
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
            trained_parameters=count,
            rows=trained.rows,
            reloaded={},
            seconds=trained.seconds,
            peak_memory_bytes=peak.bytes,
            dtype="bfloat16" if bf16 else "float32",
            teacher=teacher.record.source if teacher else None,
            control=control,
        )
        measure = partial(_measured, texts=texts, device=device, bf16=bf16, micro=run.micro)
        run.objective = teacher = None  # the teacher's memory, and weights that it shares
        if trained.weights is not None:
            run.layers, prepared = (), None
            opened.unload()
        if ranks.rank() == 0:
            if trained.weights is not None:
                prepared = _whole_again(opened, way, own, trained.weights)
            finish = partial(way.finish, prepared)
            given = [opened.checkpoint.folder, *opened.checkpoint.folder.iterdir(), *inputs]
            result = write_healed(opened, result, Writing(out, finish, measure, trained.state, overwrite, given))
        result = ranks.gathered(result)[0]
    return result


@dataclass(frozen=True)
class Common:
    """What the training of the pruned model and of the unpruned one beside it share."""

    data: Packed | Stream
    schedule: Schedule
    training: Training
    texts: dict[str, Segments]
    device: str
    apart: bool
    bf16: bool


def _documents(model: Model, data: Sequence[str | Path], dataset: str | None, budget: int, seed: int) -> Documents | None:
    """What is trained on, in memory; None for a data set of text, which is read on the way."""
    if dataset and not data and "text" in next(streamed(dataset), ("", {}))[1]:
        return None
    return read_documents(data, model.tokenizer, model.vocabulary, dataset=dataset, most=budget, seed=seed)


def _check_batch(schedule: Schedule, *, shard: bool) -> None:
    """Raise a UserError if the processes cannot split a batch."""
    many = ranks.size()
    if schedule.batch < many:
        raise UserError(f"a batch of {schedule.batch} sequences cannot be split among {many} processes: raise --batch-tokens")
    if shard and schedule.batch % many:
        fitting = schedule.batch // many * many * schedule.length
        raise UserError(f"--shard: a batch of {schedule.batch} sequences does not split evenly: --batch-tokens {fitting} does")


def _whole_again(model: Model, way: ModuleType, own: Any, weights: dict[str, torch.Tensor]) -> Any:
    """The trained weights, which had been split, put into the model as it was loaded; returns what the method needs to finish."""
    load_weights(model)
    prepared = way.prepare(model.module, model.outline.name, own)
    named = {f"model.{name}": parameter for name, parameter in model.module.named_parameters()}
    with torch.no_grad():
        for name, tensor in weights.items():
            if name.startswith("model."):  # else what the objective alone has learned
                named[name].copy_(tensor)
    return prepared


def _frozen(own: Any) -> bool:
    """Whether weights stay as they are, so that a teacher can share them."""
    return bool(own.rank or own.last_layers)


def _prepared(model: Model, way: ModuleType, own: Any, common: Common, keeper: Keeper, teacher: Model | None = None) -> tuple[Any, Run]:
    """What the method needs to finish, and the run."""
    torch.manual_seed(common.training.seed)  # adapters start at random
    prepared = way.prepare(model.module, model.outline.name, own)
    if common.training.gradient_checkpointing:
        model.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    objective = Objective(model.module)
    if teacher:
        load_weights(teacher)
        same = shared(model, teacher) if _frozen(own) and not common.training.shard else 0
        every = parameter_count(teacher.module)
        say(f"the teacher {teacher.checkpoint.source} shares {millions(same)} of its {millions(every)} parameters with the student")
        objective = Distillation(model, teacher, way.teaching(own))
        if common.training.shard:
            shard_layers(teacher.module, teacher.module.get_submodule(teacher.outline.name), common.device)
    run = _run(model, objective, common, keeper)
    run.watch = _watcher(run, common.texts)
    return prepared, run


def _control(dense: Model, way: ModuleType, own: Any, common: Common, keeper: Keeper, beside: Keeper) -> list[dict[str, Any]]:
    """The unpruned model trained on the same tokens, in the same way: the rows with its perplexities; the model itself is not kept."""
    if rows := keeper.control():
        return rows
    if hasattr(way, "teaching"):  # nobody teaches the teacher
        way = methods.find("healing", "continued")
        own = methods.configure(way, {name: str(getattr(own, name)) for name in methods.setting_names(way)})
    say("the unpruned model first, as the control for what the text alone gives")
    with beside.claimed(resume=True):
        load_weights(dense)
        _, run = _prepared(dense, way, own, common, beside)
        rows = [row for row in train(run).rows if "eval" in row]
        keeper.keep_control(rows)
    dense.unload()
    return rows


def _opened(source: Source, compute: Compute, out: Path) -> Model:
    """The model in fp32, with its own copy of the weights."""
    given = source.checkpoint if isinstance(source, Model) else None
    trust = compute.trust_remote_code or bool(given and given.trust_remote_code)
    opened = Model(given.source if given else source, dtype="fp32", device=compute.device, trust_remote_code=trust, layered=compute.layered)
    check_apart(out, [opened.checkpoint.folder])
    refuse(opened.checkpoint.source, opened.checkpoint.quantised, "heal the unquantised model, and quantise the result")
    if opened.layered:
        raise UserError(f"{opened.checkpoint.source} does not fit into memory in fp32, which training needs: take a larger machine")
    return opened


def _bf16(compute: Compute, device: str) -> bool:
    """Whether products are to be in bf16."""
    wanted = parse_dtype(compute.dtype) or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    if wanted == torch.float16:
        raise UserError("--dtype fp16: its gradients vanish without scaling; train in bf16 or fp32")
    return wanted == torch.bfloat16


def _protocol(training: Training) -> Protocol:
    most = training.eval_tokens
    return Protocol(length=training.length, max_tokens=max(most, training.length) if most else None)


def _held(model: Model, objective: Objective, schedule: Schedule) -> int:
    """Bytes of the weights in fp32, of the gradients and of what the optimiser keeps."""
    trained = sum(one.numel() for one in objective.parameters() if one.requires_grad)
    return 4 * parameter_count(model.module) + (4 + MOMENTS[schedule.recipe.optimizer]) * trained


def _micro(model: Model, objective: Objective, common: Common) -> int:
    """Sequences to run at once: on a GPU as many as its memory has room for beside weights, gradients and optimiser."""
    length, cuda = common.schedule.length, common.device.startswith("cuda")
    most = max(1, MICRO_TOKENS["cuda" if cuda else "cpu"] // length)
    if not cuda or common.training.shard:
        return most
    free = FILLED * total_memory(common.device) - _held(model, objective, common.schedule)
    return min(most, max(1, int(free / max(1, activation_bytes(objective, length, bf16=common.bf16)))))


def _run(model: Model, objective: Objective, common: Common, keeper: Keeper) -> Run:
    schedule, training = common.schedule, common.training
    return Run(
        objective=objective,
        data=common.data,
        schedule=schedule,
        keeper=keeper,
        device=common.device,
        apart=common.apart,
        micro=min(training.micro_batch or _micro(model, objective, common), schedule.batch),
        seed=training.seed,
        bf16=common.bf16,
        checkpoint_steps=training.checkpoint_steps,
        checkpoint_minutes=training.checkpoint_minutes,
        watch_steps=_eval_steps(training, schedule),
        layers=tuple(model.module.get_submodule(model.outline.name)) if training.shard else (),
        keep_state=training.keep_optimizer,
    )


def _eval_steps(training: Training, schedule: Schedule) -> int:
    return training.eval_steps or max(1, schedule.steps // 10)


def _announce(model: Model, run: Run, changed: list[str], teacher: Model | None) -> None:
    """The plan, on stderr, before the first step."""
    every, trained = parameter_count(model.module), sum(parameter.numel() for parameter in run.trained.values())
    maps = trained - sum(parameter.numel() for parameter in model.module.parameters() if parameter.requires_grad)
    schedule, about = run.schedule, run.data.about
    needed, what = _held(model, run.objective, schedule), "weights, gradients, optimiser"
    if teacher:
        own = {parameter.data_ptr() for parameter in model.module.parameters()}
        needed += sum(one.numel() * one.element_size() for one in teacher.module.parameters() if one.data_ptr() not in own)
        what += ", teacher"
    if run.layers:  # a split model cannot be called before it is split
        needed, what = needed // ranks.size(), f"{what} in each process"
    else:
        needed += run.micro * activation_bytes(run.objective, schedule.length, bf16=run.bf16)
        what += f", activations of {run.micro} x {schedule.length} tokens"
    also = f" and {millions(maps)} of maps" if maps else ""
    more = ", plus activations" if run.layers else ""
    say(f"trains {millions(trained - maps)} of {millions(every)} parameters{also}; about {byte_count(needed)} for {what}{more}")
    kind = "examples" if about["kind"] == "instructions" else "documents"
    if about["sequences"]:
        passes = schedule.steps * schedule.batch / about["sequences"]
        what = f"{about['documents']} {kind}, {millions(about['tokens'])} tokens, {passes:.2f} passes"
    else:
        what = f"{about['source']}, read on the way"
    steps = f"{schedule.steps} steps of {schedule.batch} x {schedule.length} tokens"
    say(f"{steps}, {run.micro} at once, {ranks.size()} processes; {what}")
    for line in changed:
        say(f"smaller than the recipe: {line}")
    if about["dropped"]:
        say(f"{about['dropped']} examples have no answer within the cut-off and are left out")
    if not run.apart:
        say(
            "this model does not keep documents of one row apart: "
            + ("examples are padded" if about["kind"] == "instructions" else "they see what stands before")
        )


def _watcher(run: Run, texts: dict[str, Segments]) -> Callable[[int], dict[str, Any]]:
    """step -> perplexity of every text, each process taking a share of the segments."""

    def watch(step: int) -> dict[str, Any]:
        found = _perplexities(run.objective, texts, run.device, bf16=run.bf16, micro=run.micro)
        for name, item in found.items():
            say(f"step {step}: perplexity {name} {item['value']:.3f}")
        return {"eval": found} if found else {}

    return watch


def _measured(module: nn.Module, *, texts: dict[str, Segments], device: str, bf16: bool, micro: int) -> dict[str, Any]:
    """The same of a model that this process alone has, as its files give it."""
    found = _perplexities(Objective(module), texts, device, bf16=bf16, micro=micro, alone=True)
    for name, item in found.items():
        say(f"written: perplexity {name} {item['value']:.3f}")
    return {"eval": found} if found else {}


@torch.no_grad()
def _perplexities(
    objective: Objective, texts: dict[str, Segments], device: str, *, bf16: bool, micro: int, alone: bool = False
) -> dict[str, dict[str, Any]]:
    """Text -> nll, value (perplexity) and tokens; each process takes a share of the segments unless it is ``alone``."""
    found: dict[str, dict[str, Any]] = {}
    rank, size = (0, 1) if alone else (ranks.rank(), ranks.size())
    objective.eval()
    for name, segments in texts.items():
        total, count = torch.zeros(2, dtype=torch.float64)
        mine = segments.tokens[rank::size].split(micro)
        for number in range(len(mine) if alone else max(ranks.gathered(len(mine)))):  # a split model must be called equally often by all
            rows = mine[number] if number < len(mine) else segments.tokens[:1]
            bearing = torch.full_like(rows, number < len(mine), dtype=torch.bool)
            with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bf16):
                total += objective(rows.to(device), None, bearing.to(device))[0].double().cpu()
            count += bearing[:, 1:].sum()
        nll = float(total if alone else ranks.added(total)) / float(count if alone else ranks.added(count))
        found[name] = {"nll": nll, "value": perplexity_of(nll), "tokens": segments.tokens[:, 1:].numel()}
    return found

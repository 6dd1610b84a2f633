"""Healing: a pruned model is trained further, written as a plain checkpoint and reloaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import methods
from ..anatomy.devices import checked_device
from ..anatomy.loading import parse_dtype
from ..anatomy.model import Model
from ..anatomy.quantised import refuse
from ..anatomy.stack import parameter_count
from ..artifacts import Healing, TrainingRow
from ..data.packing import Documents, packed_sequences, read_documents
from ..data.readers import check_readable, stream_rows
from ..data.streams import Stream
from ..errors import UserError, argument
from ..evaluation.perplexity import evaluation_segments
from ..reporting.card import write_card
from ..reporting.figures import learning_figure
from ..runtime import distributed
from ..runtime.format import millions
from ..runtime.memory import Peak
from ..runtime.progress import say
from ..settings.calibration import Paths, listed_paths
from ..settings.compute import Compute
from ..settings.evaluation import Protocol
from ..settings.quantities import tokens_of
from ..settings.training import Training
from ..storage.ownership import check_apart, check_free
from ..storage.paths import place
from ..surgery.trained import TrainedOutput, write_healed
from ..training.checkpoints import Checkpointer
from ..training.distillation import Distillation, share_weights
from ..training.loop import Outcome, TrainingRun, tracker_of, train
from ..training.objective import Objective, isolates
from ..training.schedule import fit_schedule
from ..training.setup import Setup, announce, check_batch, eval_steps, measure_written, run_of
from ..training.sharding import by_hand, shard_layers, split_by_launcher
from ..walk.run import load_weights
from .common import ModelSource, resolve_settings
from .lineage import dense_model, state_from


@by_hand()
def heal(
    model: ModelSource,
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
        data: .txt, .jsonl or .parquet files: documents, or Alpaca-format examples (see ``data.packing``).
        dataset: instead of files, one of the Hub as ``NAME[:CONFIG[:SPLIT]]``, of which only as much is read as the
            budget needs.
        train_tokens: the budget, repetitions counted, such as ``20M``.
        method: a name from ``methods.names("healing")``; ``settings`` are its own.
        compute: its dtype is that of the products; weights and the optimiser's state are fp32.
    Raises:
        UserError: bad data, a loss that is not finite or diverges, another run's checkpoint; nothing is left at
            ``out``.
    """
    training, compute = resolve_settings(plain, "heal", training=(Training, training), compute=(Compute, compute))
    request = Request(model, listed_paths(data), dataset, train_tokens, place(out), method, settings or {}, overwrite)
    job = HealingJob(request, training, compute)
    job.check()
    with job.claimed():
        job.control()
        job.train()
        return job.write()


@dataclass(frozen=True)
class Request:
    """What is to be healed, on what, by which method, and where it goes."""

    model: ModelSource
    data: tuple[str | Path, ...]
    dataset: str | None
    train_tokens: int | str
    out: Path
    method: str
    settings: dict[str, str] = field(default_factory=dict)
    overwrite: bool = False

    def inputs(self, training: Training) -> list[Any]:
        """All files that are read."""
        given = None if isinstance(self.model, Model) else self.model
        return [*self.data, *training.eval_texts, training.optimizer_from, given]


class HealingJob:
    """A healing: ``check`` refuses what cannot be, then ``control``, ``train`` and ``write`` while the output is
    ``claimed``.
    """

    def __init__(self, request: Request, training: Training, compute: Compute):
        self.request = request
        self.training = training
        self.compute = compute
        self.teacher: Model | None = None
        self.dense: Model | None = None
        self.rows: list[dict[str, Any]] | None = None  # of the control

    def check(self) -> None:
        """Open all that is needed and refuse, before the first step, what cannot be done."""
        request = self.request
        self.inputs = request.inputs(self.training)
        check_free(request.out, overwrite=request.overwrite, inputs=self.inputs)
        check_readable(request.data, "data")
        check_readable(self.training.eval_texts, "eval_texts")
        self.way = methods.find("healing", request.method)
        self.budget = tokens_of(request.train_tokens, "train_tokens")
        self.own = methods.configure(self.way, request.settings)
        self._settle_compute()
        self.model = _open_in_fp32(request.model, self.compute, request.out)
        self._open_others()
        self._settle_data()
        self._settle_schedule()

    def _settle_compute(self) -> None:
        self.device = checked_device(self.compute.device)
        self.bf16 = _bf16(self.compute, self.device)
        if split_by_launcher():
            self.training = replace(self.training, shard=True)
        if self.training.shard:
            if distributed.size() < 2:
                raise UserError(
                    f"{argument('shard', True)} splits the model among processes; there is one process: start "
                    "several by torchrun"
                )
            self.compute = replace(self.compute, device="cpu")  # from there each process takes its part

    def _open_others(self) -> None:
        """The teacher, and the dense model that is trained as the control."""
        if hasattr(self.way, "teaching"):
            self.way.teaching(self.own)  # refuses what cannot be before anything is loaded
            dtype = "fp32" if self.way.freezes(self.own) or not self.bf16 else "bf16"
            self.teacher = dense_model(self.model, self.own.teacher, self.compute, dtype)
        if self.training.control:
            self.dense = dense_model(self.model, getattr(self.own, "teacher", ""), self.compute, "fp32")

    def _settle_data(self) -> None:
        training = self.training
        model = self.model
        documents = _documents(model, self.request, self.budget, training.seed)
        self.texts = (
            evaluation_segments(model, training.eval_texts, None, _protocol(training), "eval_texts")
            if training.eval_texts
            else {}
        )
        if self.dense and not self.texts:
            raise UserError(
                f"the dense model is held against the healed one on {argument('eval_texts')}; give at least one file",
                control=True,
            )
        load_weights(model)
        how = {"length": training.length, "seed": training.seed, "isolated": isolates(model.module)}
        self.isolated = how["isolated"]
        self.data = (
            packed_sequences(documents, **how)
            if documents
            else Stream(self.request.dataset, model.tokenizer, model.vocabulary, **how)
        )

    def _settle_schedule(self) -> None:
        training = self.training
        recipe = self.way.recipe(self.own)
        recipe = recipe if training.lr is None else replace(recipe, lr=training.lr)
        self.schedule, self.smaller = fit_schedule(recipe, self.budget, self.data.about.length, training.batch_tokens)
        check_batch(self.schedule, shard=training.shard)
        self.tracker = tracker_of(training.track, self.request.out)
        self.earlier, self.state = state_from(training.optimizer_from, self.model, self.schedule.recipe)
        self.setup = Setup(
            self.data, self.schedule, training, self.texts, self.device, isolated=self.isolated, bf16=self.bf16
        )
        self.checkpointer = Checkpointer(self.request.out, self.key)

    @cached_property
    def key(self) -> dict[str, Any]:
        """All that decides the result, for the checkpoints."""
        schedule = self.schedule
        key = {"method": self.request.method, "settings": vars(self.own), "model": self.model.record.fingerprint}
        key |= {"data": self.data.about.hash, "steps": schedule.steps, "recipe": asdict(schedule.recipe)}
        key |= {"batch": schedule.batch, "length": schedule.length, "seed": self.training.seed, "bf16": self.bf16}
        key |= {"eval_texts": {name: one.description["hash"] for name, one in self.texts.items()}}
        key |= {"eval_steps": eval_steps(self.training, schedule)}
        key |= {"teacher": self.teacher.record.fingerprint} if self.teacher else {}
        return key | ({"optimizer": self.earlier} if self.earlier else {})

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Hold the output's checkpoints, so that no other process trains there."""
        with self.checkpointer.claimed(resume=self.training.resume):
            yield

    def control(self) -> None:
        """Train the dense model on the same tokens, in the same way, and note its perplexities.

        The model itself is not kept.
        """
        if self.dense is None:
            return
        self.model.unload()
        self.rows = self.checkpointer.control() or self._control(self.dense)
        self.dense = None
        load_weights(self.model)

    def _control(self, dense: Model) -> list[dict[str, Any]]:
        way, own = self.way.control(self.own) if hasattr(self.way, "control") else (self.way, self.own)
        out = self.request.out
        beside = Checkpointer(out.with_name(f"{out.name}.control"), self.key | {"control": True})
        say("the dense model first, as the control for what the text alone gives")
        with beside.claimed(resume=True):
            load_weights(dense)
            _, run = _prepare_run(dense, way, own, self.setup, beside)
            rows = [row for row in train(run).rows if "eval" in row]
            self.checkpointer.keep_control(rows)
        dense.unload()
        return rows

    def train(self) -> None:
        """Train, from the last checkpoint where there is one."""
        self.prepared, self.run = _prepare_run(
            self.model, self.way, self.own, self.setup, self.checkpointer, self.teacher
        )
        self.run.state = self.state
        self.run.tracker = self.tracker
        announce(self.model, self.run, self.smaller, self.teacher)
        count = sum(parameter.numel() for parameter in self.model.module.parameters() if parameter.requires_grad)
        with Peak(self.device) as peak:
            self.outcome: Outcome = train(self.run)
        self.make_record = self._record(count, peak)

    def _record(self, trained_parameters: int, peak: Peak) -> Callable[..., Healing]:
        """Record of the healing, but for what the written files settle."""
        schedule = self.schedule
        return partial(
            Healing,
            method=self.request.method,
            settings=vars(self.own),
            recipe=schedule.recipe,
            model=self.model.record,
            data=self.data.about,
            train_tokens=schedule.steps * schedule.batch * schedule.length,
            steps=schedule.steps,
            batch_tokens=schedule.batch * schedule.length,
            micro_batch=self.run.micro_batch,
            processes=distributed.size(),
            trained_parameters=trained_parameters,
            seconds=self.outcome.seconds,
            peak_memory_bytes=peak.bytes,
            dtype="bfloat16" if self.bf16 else "float32",
            teacher=self.teacher.record.source if self.teacher else None,
            control=self.rows,
        )

    def write(self) -> Healing:
        """Write the trained model, reload it and measure what the files give."""
        measure = partial(
            measure_written, texts=self.texts, device=self.device, bf16=self.bf16, micro_batch=self.run.micro_batch
        )
        self.run.objective = self.teacher = None  # the teacher's memory, and weights that it shares
        weights = self.outcome.weights
        model = self.model
        request = self.request
        if weights is not None:
            self.run.layers = ()
            self.prepared = None
            model.unload()
        record = None
        if distributed.rank() == 0:
            if weights is not None:
                self.prepared = _reload_whole(model, self.way, self.own, weights)
            written = TrainedOutput(
                out=request.out,
                finish=partial(self.way.finish, self.prepared),
                rows=[TrainingRow(**row) for row in self.outcome.rows],
                measure=measure,
                card=partial(write_card, name=request.out.resolve().name, source=model.checkpoint.folder),
                picture=_picture,
                state=self.outcome.state,
                overwrite=request.overwrite,
                inputs=[model.checkpoint.folder, *model.checkpoint.folder.iterdir(), *self.inputs],
            )
            record = write_healed(model, self.make_record, written)
        return distributed.all_gather(record)[0]


def _picture(result: Healing) -> bytes:
    return learning_figure(result).png()


def _documents(model: Model, request: Request, budget: int, seed: int) -> Documents | None:
    """What is trained on, in memory; None for a data set of text, which is read on the way."""
    if request.dataset and not request.data and "text" in next(stream_rows(request.dataset), ("", {}))[1]:
        return None
    return read_documents(
        request.data, model.tokenizer, model.vocabulary, dataset=request.dataset, most=budget, seed=seed
    )


def _reload_whole(model: Model, way: ModuleType, own: Any, weights: dict[str, Tensor]) -> Any:
    """The trained weights, which had been split, put into the model as it was loaded.

    Returns what the method needs to finish.
    """
    load_weights(model)
    prepared = way.prepare(model.module, model.outline.name, own)
    named = {f"model.{name}": parameter for name, parameter in model.module.named_parameters()}
    with torch.no_grad():
        for name, tensor in weights.items():
            if name.startswith("model."):  # else what the objective alone has learned
                named[name].copy_(tensor)
    return prepared


def _prepare_run(
    model: Model, way: ModuleType, own: Any, setup: Setup, checkpointer: Checkpointer, teacher: Model | None = None
) -> tuple[Any, TrainingRun]:
    """What the method needs to finish, and the run."""
    torch.manual_seed(setup.training.seed)  # adapters start at random
    prepared = way.prepare(model.module, model.outline.name, own)
    if setup.training.gradient_checkpointing:
        model.module.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    objective = Objective(model.module)
    if teacher:
        load_weights(teacher)
        same = share_weights(model, teacher) if way.freezes(own) and not setup.training.shard else 0
        total = parameter_count(teacher.module)
        say(
            f"the teacher {teacher.checkpoint.source} shares {millions(same)} of its {millions(total)} "
            "parameters with the student"
        )
        objective = Distillation(model, teacher, way.teaching(own))
        if setup.training.shard:
            shard_layers(teacher.module, teacher.module.get_submodule(teacher.outline.name), setup.device)
    return prepared, run_of(model, objective, setup, checkpointer)


def _open_in_fp32(source: ModelSource, compute: Compute, out: Path) -> Model:
    """The model in fp32, with its own copy of the weights."""
    given = source.checkpoint if isinstance(source, Model) else None
    trust = compute.trust_remote_code or bool(given and given.trust_remote_code)
    opened = Model(
        given.source if given else source,
        dtype="fp32",
        device=compute.device,
        trust_remote_code=trust,
        layered=compute.layered,
    )
    check_apart(out, [opened.checkpoint.folder])
    refuse(opened.checkpoint.source, opened.checkpoint.quantised, "heal the unquantised model, and quantise the result")
    if opened.layered:
        raise UserError(
            f"{opened.checkpoint.source} does not fit into memory in fp32, which training needs: take a larger machine"
        )
    return opened


def _bf16(compute: Compute, device: str) -> bool:
    """Whether products are to be in bf16."""
    wanted = parse_dtype(compute.dtype) or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    if wanted == torch.float16:
        raise UserError("its gradients vanish without scaling; train in bf16 or fp32", dtype="fp16")
    return wanted == torch.bfloat16


def _protocol(training: Training) -> Protocol:
    most = training.eval_tokens
    return Protocol(length=training.length, max_tokens=max(most, training.length) if most else None)

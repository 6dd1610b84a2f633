"""Healing: a pruned model is trained further, written as a plain checkpoint and reloaded."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from .. import methods
from ..anatomy.devices import checked_device
from ..anatomy.loading import parse_dtype
from ..anatomy.model import Model
from ..anatomy.quantised import refuse
from ..artifacts import Healing, TrainingRow
from ..data.readers import check_readable, check_trainable, split_own
from ..errors import UserError, argument
from ..evaluation.perplexity import evaluation_segments
from ..reporting.card import write_card
from ..reporting.figures import learning_figure
from ..runtime import distributed
from ..runtime.memory import Peak
from ..runtime.progress import say
from ..settings.answering import Answering
from ..settings.calibration import Paths, listed_paths
from ..settings.compute import Compute
from ..settings.evaluation import Protocol
from ..settings.quantities import tokens_of
from ..settings.training import Training
from ..storage.ownership import check_apart, check_free
from ..storage.paths import place
from ..surgery.trained import TrainedOutput, write_healed
from ..training.checkpoints import Checkpointer
from ..training.loop import Outcome, tracker_of, train
from ..training.objective import isolates
from ..training.schedule import Schedule, fit_schedule
from ..training.setup import Setup, announce, check_batch, eval_steps, measure_written
from ..training.sharding import by_hand, split_by_launcher
from ..walk.run import load_weights
from .common import ModelSource, resolve_settings
from .lineage import dense_model, state_from, teacher_named, unpruned_model
from .training_data import check_answering, read_texts
from .training_run import prepare_run, reload_whole


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
    answering: Answering | None = None,
    compute: Compute | None = None,
    overwrite: bool = False,
    **plain: Any,
) -> Healing:
    """Train a model further and write it as a plain checkpoint; it appears at ``out`` only when complete and reloaded.

    Example: ``shallower.heal("pruned", data="book.txt", train_tokens="20M", method="continued", out="healed")``.

    Args:
        data: .txt, .jsonl or .parquet files: documents, or Alpaca-format examples (see ``data.packing``). With
            ``self:`` in front a file of prompts (``data.prompts``), which the unpruned model answers
            (``training.own_words``); ``answering`` says how.
        dataset: instead of files, one of the Hub as ``NAME[:CONFIG[:SPLIT]]``, of which only as much is read as the
            budget needs.
        train_tokens: the budget, repetitions counted, such as ``20M``.
        method: a name from ``methods.names("healing")``; ``settings`` are its own.
        compute: its dtype is that of the products; weights and the optimiser's state are fp32.
    Raises:
        UserError: bad data, a loss that is not finite or diverges, another run's checkpoint; nothing is left at
            ``out``.
    """
    wanted = {"training": (Training, training), "answering": (Answering, answering), "compute": (Compute, compute)}
    training, answering, compute = resolve_settings(plain, "heal", **wanted)
    request = Request(model, listed_paths(data), dataset, train_tokens, place(out), method, settings or {}, overwrite)
    job = HealingJob(request, training, answering, compute)
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
        files, prompts = split_own(self.data)
        return [*files, *prompts, *training.eval_texts, training.optimizer_from, given]


class HealingJob:
    """A healing: ``check`` refuses what cannot be, then ``control``, ``train`` and ``write`` while the output is
    ``claimed``.
    """

    def __init__(self, request: Request, training: Training, answering: Answering, compute: Compute):
        self.request = request
        self.training = training
        self.answering = answering
        self.compute = compute
        self.teacher: Model | None = None
        self.dense: Model | None = None
        self.asked: Model | None = None
        self.rows: list[dict[str, Any]] | None = None  # of the control

    def check(self) -> None:
        """Open all that is needed and refuse, before the first step, what cannot be done."""
        request = self.request
        self.inputs = request.inputs(self.training)
        check_free(request.out, overwrite=request.overwrite, inputs=self.inputs)
        check_trainable(request.data)
        check_readable(self.training.eval_texts, "eval_texts")
        self.way = methods.find("healing", request.method)
        self.budget = tokens_of(request.train_tokens, "train_tokens")
        self.own = methods.configure(self.way, request.settings)
        self._settle_compute()
        self.model = _open_in_fp32(request.model, self.compute, request.out)
        self._open_others()
        self._settle_recipe()
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
        """The teacher, the unpruned model that answers prompts, and the one that is trained as the control."""
        asks, teaches = bool(split_own(self.request.data)[1]), hasattr(self.way, "teaching")
        check_answering(self.answering, asks=asks, teaches=asks or teaches or self.training.control)
        given = teacher_named(getattr(self.own, "teacher", ""), self.answering.teacher)
        if teaches:
            self.way.teaching(self.own)  # refuses what cannot be before anything is loaded
            dtype = "fp32" if self.way.freezes(self.own) or not self.bf16 else "bf16"
            self.teacher = dense_model(self.model, given, self.compute, dtype)
        if asks:
            compute = replace(self.compute, device=self.device)  # also where the model is split
            self.asked = unpruned_model(self.model, given, compute, "bf16" if self.bf16 else "fp32")
        if self.training.control:
            self.dense = dense_model(self.model, given, self.compute, "fp32")
            _refuse_quantised(self.dense)

    def _settle_recipe(self) -> None:
        training = self.training
        recipe = self.way.recipe(self.own)
        self.recipe = recipe if training.lr is None else replace(recipe, lr=training.lr)
        self.tracker = tracker_of(training.track, self.request.out)
        self.earlier, self.state = state_from(training.optimizer_from, self.model, self.recipe)

    def _settle_data(self) -> None:
        training = self.training
        model = self.model
        given = self.request.data, self.request.dataset
        texts = read_texts(model, given, self.asked, self.budget, training, self.answering)
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
        if texts.questions:  # before an hour of answers
            check_batch(self._fitted(training.length)[0], shard=training.shard)
            Checkpointer(self.request.out, {}).check_begun(resume=training.resume)
            texts.answer(self.request.out.absolute().parent, self.device, training.length)
        load_weights(model)
        self.isolated = isolates(model.module)
        self.data = texts.packed(model, training, isolated=self.isolated)

    def _fitted(self, length: int) -> tuple[Schedule, list[str]]:
        return fit_schedule(self.recipe, self.budget, length, self.training.batch_tokens)

    def _settle_schedule(self) -> None:
        training = self.training
        self.schedule, self.smaller = self._fitted(self.data.about.length)
        check_batch(self.schedule, shard=training.shard)
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
            _, run = prepare_run(dense, way, own, self.setup, beside)
            rows = [row for row in train(run).rows if "eval" in row]
            self.checkpointer.keep_control(rows)
        dense.unload()
        return rows

    def train(self) -> None:
        """Train, from the last checkpoint where there is one."""
        self.prepared, self.run = prepare_run(
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
                self.prepared = reload_whole(model, self.way, self.own, weights)
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


def _picture(result: Healing) -> bytes | None:
    return learning_figure(result).png()


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
    _refuse_quantised(opened)
    if opened.layered:
        raise UserError(
            f"{opened.checkpoint.source} does not fit into memory in fp32, which training needs: take a larger machine"
        )
    return opened


def _refuse_quantised(model: Model) -> None:
    """Raise a UserError where packed weights would have to be trained."""
    checkpoint = model.checkpoint
    refuse(checkpoint.source, checkpoint.quantised, "heal the unquantised model, and quantise the result")


def _bf16(compute: Compute, device: str) -> bool:
    """Whether products are to be in bf16."""
    wanted = parse_dtype(compute.dtype) or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    if wanted == torch.float16:
        raise UserError("its gradients vanish without scaling; train in bf16 or fp32", dtype="fp16")
    return wanted == torch.bfloat16


def _protocol(training: Training) -> Protocol:
    most = training.eval_tokens
    return Protocol(length=training.length, max_tokens=max(most, training.length) if most else None)

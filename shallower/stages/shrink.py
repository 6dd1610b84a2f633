"""Shrinking, the whole job with the defaults that are best by our own tables: choose for the repaired model, remove,
repair, prove, measure, report.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..anatomy.model import Model
from ..artifacts import Evaluation, Plan, Pruned, Speed, save
from ..errors import Refusal, UserError
from ..evaluation.perplexity import evaluation_segments
from ..runtime import distributed
from ..runtime.memory import total_memory
from ..runtime.progress import parts, say
from ..settings.amount import Amount, amount_of
from ..settings.calibration import Calibration, Paths, calibration_of, listed_paths
from ..settings.compute import Compute
from ..settings.evaluation import Protocol
from ..settings.quantities import seconds_of
from ..settings.speed import Grid
from ..settings.writing import Writing
from ..storage.journal import journaled
from ..storage.ownership import check_apart, check_free
from ..storage.paths import kind_of, place
from ..walk.batching import STREAM_SHARE
from ..walk.replay import replay_of
from .bench import bench
from .common import ModelSource, open_to_run, resolve_settings
from .evaluate import evaluate
from .plan import plan as make_plan
from .prune import prune
from .repair_options import RepairOptions
from .report import report
from .selection_options import REPAIRED, SelectionOptions

BUDGET = "10m"  # of the repair
TRAINED = 1024  # samples that it takes at most: more of them helps more than more steps
MINIMUM = 64  # and at least, however little memory there is for their streams
OWN = re.compile(  # scores and evaluation-plain were of demos of version 0.1
    r"(plan|speed|samples|scores|evaluation-(dense|pruned|plain))\.json|model|report(\.html)?"
    r"|\.(plan|speed|evaluation|model|report)[\w.-]*"
)
GRID = Grid(batches=(1,), prompts=(128,), new=(32,), repeats=5)
COSTS = {"choice": 3.0, "dense": 0.3, "repair": 5.0, "pruned": 0.3, "speed": 0.5}


@dataclass(frozen=True)
class Shrunk:
    """What shrinking has made, all of it in one folder.

    Attributes:
        folder: with ``model/``, ``plan.json``, the evaluations, the speed and ``report.html``.
        speed: None where the model is not resident, or none was asked for.
        repair: how it was repaired; None where it could not be.
        grid: what the speed was measured on.
    """

    folder: Path
    plan: Plan
    pruned: Pruned
    dense: Evaluation
    after: Evaluation
    speed: Speed | None
    repair: RepairOptions | None
    grid: Grid = GRID

    @property
    def model(self) -> Path:
        """The folder of the checkpoint."""
        return self.folder / "model"

    def __repr__(self) -> str:
        return f"<Shrunk {self.model}: {len(self.plan.kept)} of {self.plan.model.layers} layers>"


def shrink(
    model: ModelSource,
    *,
    out: str | Path,
    amount: Amount | int | float | str | None = None,
    budget: float | str = BUDGET,
    repair_samples: int | None = None,
    choosing: SelectionOptions | None = None,
    calibration: Calibration | None = None,
    texts: Paths = (),
    measure_speed: bool = True,
    writing: Writing | None = None,
    compute: Compute | None = None,
    **plain: Any,
) -> Shrunk:
    """Make a model shallower: the whole job in one call.

    The run of layers with the lowest loss after a closed-form repair goes (``choosing`` may say otherwise), what is
    left is trained layer by layer within the budget, and only what lowers the held-out loss is kept.

    Several processes share the choice, the repair and the evaluations; the first writes and measures the speed.

    Example: ``shallower.shrink("my-model", ratio="20%", out="small")``, or ``target_params="1B"``.

    Args:
        out: folder for all that is made: ``model/`` and the measurements beside it.
        amount: how much goes: an Amount, a number of layers or a share; or its fields as keywords.
        budget: time for the repair, such as ``"10m"``, closed forms and checks counted.
        repair_samples: samples that it takes, at most; None: 1024.
        calibration: the texts that are chosen and repaired by; ``samples`` are those of the choice.
        texts: what perplexity is measured on, as for ``evaluate``.
    Raises:
        UserError: as by the single steps; nothing half-written is left.
    """
    amount = amount_of(amount) if amount is not None else None
    kinds = {
        "choosing": (SelectionOptions, choosing),
        "calibration": (Calibration, calibration_of(calibration)),
        "writing": (Writing, writing),
        "compute": (Compute, compute),
    }
    settled = resolve_settings(plain, "shrink", amount=(Amount, amount), **kinds)
    amount, choosing, calibration, writing, compute = settled
    seconds = seconds_of(budget, "repair_budget")
    if not seconds > 0:
        raise UserError("more than 0 is needed", repair_budget=budget)
    out = place(out)
    inputs = [*calibration.files, *listed_paths(texts), None if isinstance(model, Model) else model]
    writing = replace(writing, overwrite=_goes_on(out, writing, inputs))
    job = _Job(open_to_run(model, compute), out, calibration, texts, writing)
    evaluation_segments(job.model, texts, None, Protocol())  # wrong ones are refused before anything is scored
    timed = measure_speed and not job.model.layered
    made = job.done(amount, choosing, (seconds, repair_samples or TRAINED), timed=timed)
    distributed.by_first(lambda: report(out))
    return made


def _goes_on(out: Path, writing: Writing, inputs: list[Any]) -> bool:
    """Whether an output is one of ours to be replaced, or that of a killed job.

    Raises:
        UserError: something else is there, or what is read lies in it.
    """
    killed = (out.parent / f".{out.name}.journal").is_dir() and not (out / "report.html").exists()
    again = is_ours(out) and (writing.overwrite or killed)
    if again:
        check_apart(out, inputs)
    else:
        check_free(out, overwrite=writing.overwrite, inputs=inputs)
    return again


def _speed(small: Model, dense: Model) -> Speed | None:
    """Speed beside the dense model, where both fit into the memory together."""
    try:
        return bench(small, against=dense, grid=GRID)
    except UserError as error:
        say(f"the speed is not measured: {error}")
        return None


def _save(made: Shrunk) -> None:
    """Write the artifacts; what an earlier shrinking left beside them goes."""
    named = {"plan": made.plan, "evaluation-dense": made.dense, "evaluation-pruned": made.after, "speed": made.speed}
    for name, record in {**dict.fromkeys(("samples", "scores", "evaluation-plain")), **named}.items():
        if record is not None:
            save(record, made.folder / f"{name}.json")
        else:
            (made.folder / f"{name}.json").unlink(missing_ok=True)


def is_ours(out: Path) -> bool:
    """Whether a folder holds what shrinking has made, whole or not, and nothing else."""
    names = [path.name for path in out.iterdir()] if out.is_dir() and not out.is_symlink() else []
    model = kind_of(out / "model" / "shallower.json") == "pruned" or kind_of(out / "plan.json") == "plan"
    return model and all(map(OWN.fullmatch, names))


@dataclass(frozen=True)
class _Job:
    """A model that is shrunk, and by what."""

    model: Model
    out: Path
    calibration: Calibration
    texts: Paths
    writing: Writing

    def done(self, amount: Amount, choosing: SelectionOptions, repairing: tuple[float, int], *, timed: bool) -> Shrunk:
        """All steps but the report.

        Args:
            repairing: seconds and most samples of the repair.
            timed: whether the speed is measured.
        """
        texts = self.texts
        with journaled(self.out), parts({name: COSTS[name] for name in COSTS if timed or name != "speed"}) as part:
            with part("choice"):
                plan, repaired = self.choice(amount, choosing)
            with part("dense"):
                dense = evaluate(self.model, texts=texts)
            with part("repair"):
                pruned, repair = self.pruned(plan, self.repair(*repairing) if repaired else None)
            small = self.reopened()
            with part("pruned"):
                after = evaluate(small, texts=texts)
            speed = None
            if timed:
                with part("speed"):
                    speed = distributed.by_first(lambda: _speed(small, self.model))
            made = Shrunk(self.out, plan, pruned, dense, after, speed, repair)
            distributed.by_first(lambda: _save(made))
        return made

    def choice(self, amount: Amount, choosing: SelectionOptions) -> tuple[Plan, bool]:
        """(the plan, whether what it leaves can be repaired); for the repaired model where that is possible."""
        texts = self.texts if amount.max_ppl_increase is not None else ()
        options = {"amount": amount, "calibration": self.calibration, "texts": texts}
        repairable = self.model.checkpoint.quantised is None and replay_of(self.model) is not None
        if repairable and not choosing.selection and not choosing.objective and not choosing.iterative:
            try:
                return make_plan(self.model, choosing=replace(choosing, objective=REPAIRED), **options), True
            except Refusal as refusal:
                say(f"not chosen for the repaired model: {refusal}")
        return make_plan(self.model, choosing=choosing, **options), repairable

    def reopened(self) -> Model:
        """What was written, opened as the dense model is."""
        model = self.model
        how = {"dtype": model.dtype, "device": model.device, "layered": model.layered}
        return Model(self.out / "model", trust_remote_code=model.checkpoint.trust_remote_code, **how)

    def repair(self, seconds: float, samples: int) -> RepairOptions:
        """Local training within the budget, on as many samples as there is memory for their streams."""
        streams = 4 * self.calibration.length * self.model.stream_bytes  # of a sample: two models, in and out
        samples = max(MINIMUM, min(samples, total_memory(self.model.device) // STREAM_SHARE // streams))
        tokens = replace(self.calibration, samples=max(samples, self.calibration.samples), at_most=True)
        return RepairOptions("local", calibration=tokens, repair_budget=seconds)

    def pruned(self, plan: Plan, repair: RepairOptions | None) -> tuple[Pruned, RepairOptions | None]:
        """(what is left, how it was repaired): from the closed form on, or without one where there is none."""
        try:
            return self.written(plan, repair), repair
        except Refusal as refusal:
            if repair is None:
                raise
            say(f"trained without a closed form: {refusal}")
            repair = replace(repair, settings={"start": "none"})
            return self.written(plan, repair), repair

    def written(self, plan: Plan, repair: RepairOptions | None) -> Pruned:
        """The checkpoint, repaired or not."""
        return prune(self.model, plan, out=self.out / "model", compensating=repair, writing=self.writing)

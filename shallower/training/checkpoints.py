"""Training checkpoints, resumable: kept in a hidden folder beside the output until that is complete.

``.OUT.healing/`` holds ``about.json`` (what decides the run), ``metrics.jsonl`` and ``step-N.safetensors`` files: the
trained tensors and the optimiser's, by parameter name, with the step in the header; no pickle. Each is written beside
and renamed; the last ones stay. There is no state of a random generator to keep: data order and dropout are functions
of seed and step.
"""

import errno
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import Stopped, UserError, argument
from ..runtime import distributed
from ..runtime.progress import say
from ..storage.files import disk_errors, made_parents, remove_own, write_atomic
from ..storage.locks import acquire_lock
from .sharding import like, whole

KEPT = 2
OWN_CHECKPOINTS = re.compile(
    r"(about|control)\.json|metrics\.jsonl|lock|\.?step-\d+\.safetensors|\.(about|control|metrics)\..*"
)
NO_STEP = "before the first step was done, so there is nothing to go on from; nothing was left half-written"
WEIGHT, STATE = "weight:", "state:"
TrainedWeights = dict[str, nn.Parameter]  # by name


class Checkpointer:
    """The hidden folder of one run; every process has one, the first writes.

    Args:
        out: the folder that the run is to make.
        key: all that decides the result; JSON.
    """

    def __init__(self, out: Path, key: dict[str, Any]):
        self.folder = checkpoint_folder(out)
        self.key = json.loads(json.dumps(key))
        self.metrics = self.folder / "metrics.jsonl"
        self._control = self.folder / "control.json"

    @contextmanager
    def claimed(self, *, resume: bool) -> Iterator[None]:
        """Hold the folder while inside; it goes on success, and on failure unless a checkpoint lies in it.

        Raises:
            UserError: another process trains to the same output, checkpoints lie there and ``resume`` was not given,
                or they are those of another run.
        """
        first = distributed.rank() == 0
        lock = None
        if first:
            with disk_errors(self.folder), made_parents(self.folder):
                self.folder.mkdir(exist_ok=True)
                lock = acquire_lock(
                    self.folder,
                    f"another process trains in {self.folder}: wait for it or give another {argument('out')}",
                )
        try:
            if first:
                self._check(resume)
                write_atomic(self.folder / "about.json", json.dumps(self.key, indent=2) + "\n")
            distributed.all_gather(None)
            yield
            distributed.all_gather(None)
            if first:
                remove_own(self.folder, OWN_CHECKPOINTS)
        except KeyboardInterrupt as stop:
            kept = getattr(stop, "kept", "") or NO_STEP
            if steps := list(self.steps()):
                again = f"the same command with {argument('resume', True)} goes on from there"
                kept = f"step {steps[-1]} is kept in {self.folder}: {again}"
            raise Stopped(getattr(stop, "signal", signal.SIGINT), kept) from stop
        finally:
            if lock is not None:
                if not self._has_kept():
                    remove_own(self.folder, OWN_CHECKPOINTS)
                lock.release()

    def check_begun(self, *, resume: bool) -> None:
        """Raise a UserError if checkpoints lie there and ``resume`` was not given."""
        if self._has_kept() and not resume:
            raise UserError(
                f"checkpoints of an interrupted run lie in {self.folder}: pass {argument('resume', True)} to go on, or "
                "remove them to start anew"
            )

    def _check(self, resume: bool) -> None:
        self.check_begun(resume=resume)
        if not self._has_kept():
            if resume:
                say(f"nothing to resume in {self.folder}: beginning")
            return
        try:
            before = json.loads((self.folder / "about.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.folder / 'about.json'} cannot be read: remove {self.folder} to start anew"
            ) from error
        differing = [name for name in {*before, *self.key} if before.get(name) != self.key.get(name)]
        if differing:
            name = min(differing)
            raise UserError(
                f"the checkpoint in {self.folder} is of another run ({name}: {_short(before.get(name))} there, "
                f"{_short(self.key.get(name))} here): give the options of that run, "
                f"another {argument('out')}, or remove it"
            )

    def steps(self) -> dict[int, Path]:
        """Step -> file, the earliest first."""
        files = {int(path.stem.removeprefix("step-")): path for path in self.folder.glob("step-*.safetensors")}
        return dict(sorted(files.items()))

    def keep(
        self,
        step: int,
        trained: TrainedWeights,
        optimizer: torch.optim.Optimizer,
        seconds: float,
        place: dict[str, int],
    ) -> None:
        """Write what training has reached after ``step`` steps, and where the data go on.

        Older checkpoints but the last go.

        Raises:
            DiskError: no space; what was kept before stays.
        """
        tensors = _tensors(trained, optimizer)
        if distributed.rank() == 0:
            target = self.folder / f"step-{step}.safetensors"
            beside = self.folder / f".{target.name}"
            header = {"step": str(step), "seconds": repr(seconds), "place": json.dumps(place)}
            try:
                stay = f"; the checkpoints in {self.folder} stay, and {argument('resume', True)} goes on from there"
                with disk_errors(target, stay):
                    write_tensors(tensors, beside, header)
                    os.replace(beside, target)
            finally:
                beside.unlink(missing_ok=True)
            for path in list(self.steps().values())[:-KEPT]:
                path.unlink(missing_ok=True)

    def restore(self, trained: TrainedWeights, optimizer: torch.optim.Optimizer) -> tuple[int, float, dict[str, int]]:
        """Put the last readable checkpoint back: (its step, seconds spent on it, where the data go on).

        (0, 0.0, {}) without one.
        """
        step = 0
        seconds = 0.0
        place: dict[str, int] = {}
        for number, path in reversed(self.steps().items()):
            try:
                tensors, header = read_tensors(path)
                seconds = float(header["seconds"])
                place = json.loads(header["place"])
            except (SafetensorError, OSError, KeyError, ValueError):
                say(f"{path} cannot be read: the one before is tried")
                continue
            _restore(tensors, trained, optimizer)
            step = number
            break
        distributed.all_gather(None)
        if distributed.rank() == 0 and step:
            say(f"resuming at step {step}")
        self._shorten(step)
        return step, seconds, place

    def _shorten(self, step: int) -> None:
        """Forget figures of steps that are done again."""
        if distributed.rank() == 0:
            rows = [line for line in _lines(self.metrics) if json.loads(line)["step"] <= step] if step else []
            write_atomic(self.metrics, "".join(line + "\n" for line in rows))

    def note(self, row: dict[str, Any]) -> None:
        """Add a line to ``metrics.jsonl``."""
        if distributed.rank() == 0:
            with disk_errors(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def keep_control(self, rows: list[dict[str, Any]]) -> None:
        """Keep the figures of the dense model, which was trained first, for a second start."""
        if distributed.rank() == 0:
            write_atomic(self._control, json.dumps(rows))
        distributed.all_gather(None)

    def control(self) -> list[dict[str, Any]]:
        """What ``keep_control`` kept, or nothing."""
        return json.loads(self._control.read_text(encoding="utf-8")) if self._control.is_file() else []

    def _has_kept(self) -> bool:
        """Whether something lies there that a second start can use."""
        return bool(self.steps()) or self._control.is_file()

    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in _lines(self.metrics)]


def checkpoint_folder(out: Path) -> Path:
    """Where the checkpoints of a run to ``out`` lie."""
    out = out.absolute()
    return out.parent / f".{out.name}.healing"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 60 else text[:59] + "…"


def _lines(path: Path) -> list[str]:
    """Whole lines; a kill may have left half of the last one."""
    if not path.is_file():
        return []
    return [
        line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("{") and line.endswith("}")
    ]


def state_of(trained: TrainedWeights, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """What the optimiser keeps of every parameter, as ``state:KEY:PARAMETER``; numbers become tensors."""
    state = {}
    for name, parameter in trained.items():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor | int | float):
                state[f"{STATE}{key}:{name}"] = whole(value) if isinstance(value, Tensor) else torch.tensor(value)
    return state


def put_state(tensors: dict[str, Tensor], trained: TrainedWeights, optimizer: torch.optim.Optimizer) -> int:
    """Give the optimiser back what it kept.

    Of parameters that are not trained nothing. Returns of how many it had something.
    """
    known = set()
    for label, tensor in tensors.items():
        if label.startswith(STATE):
            key, _, name = label.removeprefix(STATE).partition(":")
            if name in trained:
                number = tensor.dtype == torch.int64 and not tensor.dim()  # a count that was no tensor
                optimizer.state[trained[name]][key] = int(tensor) if number else like(tensor, trained[name])
                known.add(name)
    return len(known)


def _tensors(trained: TrainedWeights, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {WEIGHT + name: whole(parameter.detach()) for name, parameter in trained.items()} | state_of(
        trained, optimizer
    )


def _restore(tensors: dict[str, Tensor], trained: TrainedWeights, optimizer: torch.optim.Optimizer) -> None:
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(like(tensors[WEIGHT + name], parameter))
    put_state(tensors, trained, optimizer)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, header) of a checkpoint or of a kept state of an optimiser."""
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def write_tensors(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    own: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.cpu().contiguous()
        own[name] = tensor.clone() if tensor.data_ptr() in seen else tensor  # optimisers of 8 bit share their tables
        seen.add(tensor.data_ptr())
    try:
        save_file(own, path, header)
    except SafetensorError as error:  # it wraps what the disk said
        raise OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error)) from error
    with path.open("rb") as written, suppress(OSError):
        os.fsync(written.fileno())

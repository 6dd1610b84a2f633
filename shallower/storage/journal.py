"""Journal of a long run, kept beside its output, so that a killed one goes on where it stood.

A journal is a hidden folder beside ``--out`` that goes when the command succeeds. Below it, each piece of work has a
folder named by a hash of all that decides its result (model, tokens, settings, versions), so that nothing is ever
taken over from another run. Everything in it is written beside and renamed.
"""

import errno
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..errors import argument
from ..runtime import distributed
from ..runtime.progress import say
from .files import disk_errors, made_parents, remove_own, write_atomic
from .locks import acquire_lock

JOURNAL_SECONDS = float(
    os.environ.get("SHALLOWER_JOURNAL_SECONDS", "5")
)  # between two states; more where writing one takes long
INSIDE = re.compile(r"(about|done)\.json|\..*|[^/]*\.(safetensors|spilled)|model/.*")  # what a piece of work writes
OWN_JOURNALS = re.compile(rf"lock|[0-9a-f]{{16}}/({INSIDE.pattern})")
PATIENCE = 20.0  # a state is written again after so many times the seconds that the last one took
_beside: ContextVar["_Beside | None"] = ContextVar("journal", default=None)


class _Beside:
    """The hidden folder beside one output; made, and locked against other commands, once something is to be kept."""

    def __init__(self, out: Path):
        self.out = out
        self.folder = out.parent / f".{out.name}.journal"
        self.lock = None
        self.new_folders: list[Path] = []

    def claim(self) -> Path:
        """The folder, ours until the process ends.

        Raises:
            UserError: another process writes to the same output.
        """
        if distributed.rank() == 0 and self.lock is None:
            self.new_folders = [folder for folder in self.folder.parents if not folder.exists()]
            with disk_errors(self.folder), made_parents(self.folder):
                self.folder.mkdir(exist_ok=True)
                try:
                    busy = f"another process is writing {self.out}: wait for it or give another {argument('out')}"
                    self.lock = acquire_lock(self.folder, busy)
                except OSError:
                    with suppress(OSError):
                        self.folder.rmdir()
                    raise
        return self.folder

    def close(self, *, drop: bool = False) -> None:
        if self.lock is not None:
            if drop or (not any(self.folder.rglob("done.json")) and not any(self.folder.rglob("*.safetensors"))):
                remove_own(self.folder, OWN_JOURNALS)
                for folder in self.new_folders:  # what has come into them since keeps them
                    with suppress(OSError):
                        folder.rmdir()
            self.lock.release()
            self.lock = None


@contextmanager
def journaled(out: str | Path | None) -> Iterator[None]:
    """Keep journals beside ``out`` while inside; the outermost such block decides.

    They go when it succeeds, or fails in a way that would come again; a kill, Ctrl-C, a disk or memory that is full
    leaves them.
    """
    if out is None or _beside.get() is not None:
        yield
        return
    beside = _Beside(Path(out).absolute())
    token = _beside.set(beside)
    try:
        yield
        distributed.all_gather(None)  # all are done with it
        beside.close(drop=True)
    except Exception as error:
        beside.close(drop=not isinstance(error, distributed.PASSING))
        raise
    finally:
        beside.close()
        _beside.reset(token)


@dataclass
class State:
    """How far a part had come: its step, tensors by name, and notes that JSON can hold."""

    step: int = 0
    tensors: dict[str, Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    spent: float = 0.0


class Journal:
    """The journal of one piece of work; without an ``--out`` it keeps nothing.

    Args:
        key: all that decides the result; JSON.
    """

    def __init__(self, key: dict | None = None):
        beside = _beside.get()
        self.folder = None
        self.resumed = False
        self.done: dict[str, Any] = {}
        self.started = time.monotonic()
        self.before = 0.0  # before: seconds that earlier processes spent on what is kept
        if key is None or beside is None:
            return
        text = json.dumps(key, sort_keys=True, default=str)
        self.folder = beside.claim() / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.resumed = all(distributed.all_gather((self.folder / "about.json").is_file()))
        if self.resumed:
            with suppress(OSError, ValueError):
                self.done = json.loads((self.folder / "done.json").read_text(encoding="utf-8"))
        elif distributed.rank() == 0:
            write_atomic(self.folder / "about.json", text + "\n")
        self.done = distributed.all_gather(self.done)[0]

    def memo(self, name: str, compute: Callable[[], Any]) -> Any:
        """The result of ``compute``, from the journal where it was finished before.

        JSON, floats kept to the last bit; that of the first process, where several compute it.
        """
        if self.folder is None:
            return distributed.of_first(compute())
        if name not in self.done:
            self.done[name] = distributed.of_first(compute())
            self._write()
        return self.done[name]

    def note(self, name: str, key: str, value: Any) -> None:
        """Keep one value of the dictionary that ``done[name]`` is."""
        self.done.setdefault(name, {})[key] = value
        self._write()

    def _write(self) -> None:
        if self.folder is not None and distributed.rank() == 0:
            write_atomic(self.folder / "done.json", json.dumps(self.done))

    def drop(self) -> None:
        """Forget all of this work."""
        self.done = {}
        if self.folder is not None:
            remove_own(self.folder, INSIDE)

    def seconds_spent(self) -> float:
        """Seconds of work in what is kept and in this process."""
        return self.before + time.monotonic() - self.started

    def part(
        self, label: str, total: int, which: str = "", *, lasting: bool = False, common: bool = False
    ) -> "JournalPart":
        """A stretch of ``total`` steps within this work; ``which`` tells it from others with the same label.

        Args:
            lasting: its last state stays until the command ends.
            common: its states are the same in all processes, and are written once.
        """
        return JournalPart(self, label, total, which, lasting, common)

    def spill(self, name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor] | None:
        """The same tensors in a file, read from there only where they are used.

        One that has several names is written once.

        None where nothing is kept. Of several processes, which must give the same, the first writes.
        """
        if self.folder is None:
            return None
        if distributed.rank() == 0:
            self._write_spilled(self.folder / f"{name}.spilled", tensors)
        distributed.all_gather(None)
        return self.from_spilled(name)

    def _write_spilled(self, path: Path, tensors: dict[str, Tensor]) -> None:
        first = {}
        same = {key: first.setdefault((one.data_ptr(), one.shape, one.stride()), key) for key, one in tensors.items()}
        with disk_errors(path):
            try:
                _save(
                    {key: tensors[key] for key in first.values()},
                    path.with_name(f".{path.name}"),
                    {"same": json.dumps(same)},
                )
                os.replace(path.with_name(f".{path.name}"), path)
            finally:
                path.with_name(f".{path.name}").unlink(missing_ok=True)

    def from_spilled(self, name: str) -> dict[str, Tensor]:
        """What was spilled by that name.

        Raises:
            OSError: the file is not there, or not whole.
        """
        try:
            with safe_open(self.folder / f"{name}.spilled", "pt") as file:
                own = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return {key: own[first] for key, first in json.loads(file.metadata()["same"]).items()}
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from error


class JournalPart:
    """A stretch of steps whose state is kept now and then.

    Entered with ``with``, ``resume`` first, ``keep`` after each step.
    """

    def __init__(self, journal: Journal, label: str, total: int, which: str, lasting: bool, common: bool):
        self.journal = journal
        self.label = label
        self.total = total
        self.lasting = lasting
        self.kept = 0
        self.saved = time.monotonic()
        self.took = 0.0
        name = re.sub(r"[^a-z0-9]+", "-", f"{label} {which}".lower())
        self.writes = not common or distributed.rank() == 0
        self.pattern = f"{name}.*.{0 if common else distributed.rank()}.safetensors"

    def resume(self) -> State:
        """The last state that every process has, or a new one."""
        folder = self.journal.folder
        if folder is None or not self.journal.resumed:
            return State()
        readable = {step: state for step, path in self._files().items() if (state := _read(path)) is not None}
        common = set.intersection(*map(set, distributed.all_gather(list(readable))))
        state = readable[max(common)] if common else State()
        self.kept = state.step
        self.journal.before = max(self.journal.before, state.spent)
        say(f"resuming at {self.label} {state.step} of {self.total}")
        return state

    def keep(self, step: int, tensors: dict[str, Tensor], notes: dict[str, Any], *, now: bool = False) -> None:
        """Write the state after ``step`` steps, if it is time to, or in any case ``now``."""
        if self.journal.folder is None or not (now or self._due()):
            return
        started = time.monotonic()
        if self.writes:
            self._write(step, tensors, notes)
        distributed.all_gather(None)  # only now may the older state go: every process has this one
        if self.writes:
            for other, path in self._files().items():
                if other != step:
                    path.unlink(missing_ok=True)
        self.kept, self.saved = step, time.monotonic()
        self.took = self.saved - started

    def _write(self, step: int, tensors: dict[str, Tensor], notes: dict[str, Any]) -> None:
        name = self.pattern.replace("*", str(step))
        target, beside = self.journal.folder / name, self.journal.folder / f".{name}"
        header = {"state": json.dumps({"step": step, "notes": notes, "spent": self.journal.seconds_spent()})}
        with disk_errors(
            target, f"; {self.kept} of {self.total} steps are kept, and the same command goes on from there"
        ):
            try:
                _save(tensors, beside, header)
                os.replace(beside, target)
            finally:
                beside.unlink(missing_ok=True)

    def _due(self) -> bool:
        return distributed.of_first(time.monotonic() - self.saved >= max(JOURNAL_SECONDS, PATIENCE * self.took))

    def _files(self) -> dict[int, Path]:
        return {int(path.name.split(".")[-3]): path for path in self.journal.folder.glob(self.pattern)}

    def __enter__(self) -> "JournalPart":
        return self

    def __exit__(self, kind, *_) -> None:
        if self.journal.folder is None:
            return
        if kind is None and not self.lasting and self.writes:
            for path in self._files().values():
                path.unlink(missing_ok=True)
        elif kind is not None and issubclass(kind, KeyboardInterrupt):
            say(
                f"stopped in {self.label}, {self.kept} of {self.total} steps are kept: the same command goes "
                "on from there"
            )


def _save(tensors: dict[str, Tensor], path: Path, header: dict[str, str]) -> None:
    own: dict[str, Tensor] = {}
    storages: set[int] = set()
    for key, tensor in tensors.items():  # the format wants contiguous tensors that share no memory
        place = tensor.untyped_storage().data_ptr()
        own[key] = tensor.clone(memory_format=torch.contiguous_format) if place in storages else tensor.contiguous()
        storages.add(place)
    try:
        save_file(own, path, header)
    except SafetensorError as error:  # it wraps what the disk said
        raise OSError(errno.ENOSPC if "No space" in str(error) else errno.EIO, str(error)) from error
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _read(path: Path) -> State | None:
    """The state in a file, or None where it is not whole."""
    try:
        with safe_open(path, "pt") as file:
            about = json.loads(file.metadata()["state"])
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return State(about["step"], tensors, about["notes"], about["spent"])
    except (SafetensorError, ValueError, KeyError, TypeError, OSError):
        return None


NO_JOURNAL = Journal()

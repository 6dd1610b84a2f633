"""Repair state: what a paired walk has found on its way, kept so that a killed one goes on."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..anatomy.patch import Edit, Patch
from ..runtime import distributed
from ..runtime.memory import total_memory
from ..runtime.progress import say
from ..storage.journal import JournalPart, State

SPILLED = 1 << 20  # bytes of changes of a layer from which on they are kept on the disk, where there is a journal
OWN_FIELDS = {"notes": "notes", "loss": "loss", "asked": "asked", "told": "conclusion"}  # key in the journal -> field
ON_GPU = 8  # unless all changes together take less than this part of a GPU's memory


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({one.data_ptr(): one.nbytes for one in tensors}.values())


@dataclass
class RepairState:
    """What a paired walk has found on the way; kept together with the streams, so that a killed walk goes on.

    Attributes:
        patch: changes so far.
        notes: of layers that have been passed, what is to be known of them, as JSON holds it; ``layer`` says of which.
        tensors: sums of such layers, ``LAYER/NAME``.
        loss: mean NLL of the pruned model with the changes on held-out tokens, where it has been asked for.
        asked: how many losses have been asked for.
        conclusion: what the method tells at its end; None before.
        step: the layer at which the walk begins.
        streams: of both models in front of it.
        files: name of a changed weight -> the file of the journal that holds its change.
    """

    patch: Patch = field(default_factory=dict)
    notes: list[dict[str, Any]] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    loss: float | None = None
    asked: int = 0
    conclusion: dict[str, Any] | None = None
    step: int = 0
    streams: dict[str, Tensor] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, state: State, part: JournalPart) -> "RepairState":
        """What a state holds that ``keep`` has written."""
        if not state.step:
            return cls()
        groups: dict[str, dict[str, Tensor]] = {"patch": {}, "own": {}, "stream": {}}
        for key, tensor in state.tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = tensor
        about = state.notes["patch"]
        files = state.notes["files"]
        whole = True
        try:
            for file in dict.fromkeys(files.values()):
                groups["patch"] |= part.journal.from_spilled(file)
        except OSError:  # after a power failure, say: the streams alone are of no use
            whole = False
        if not all(distributed.all_gather(whole)):
            part.kept = 0
            part.journal.before = 0.0
            say(f"a file of {part.journal.folder} is not whole: beginning anew")
            return cls()
        patch = {
            name: Edit(kind, groups["patch"][name], axis, strength) for name, (kind, axis, strength) in about.items()
        }
        own = {name: state.notes["own"][key] for key, name in OWN_FIELDS.items()}
        return cls(patch, files=files, tensors=groups["own"], streams=groups["stream"], step=state.step, **own)

    def keep(self, part: JournalPart, step: int, streams: dict[str, Tensor], *, now: bool = False) -> None:
        """Give it to the journal, if it is time to."""
        files = {name: file for name, file in self.files.items() if name in self.patch}
        tensors = {f"patch/{name}": edit.value for name, edit in self.patch.items() if name not in files}
        tensors |= {f"own/{name}": tensor for name, tensor in self.tensors.items()}
        tensors |= {f"stream/{name}": tensor for name, tensor in streams.items()}
        patch = {name: [edit.kind, edit.axis, edit.strength] for name, edit in self.patch.items()}
        own = {key: getattr(self, name) for key, name in OWN_FIELDS.items()}
        part.keep(step, tensors, {"own": own, "patch": patch, "files": files}, now=now)

    def keep_largest(self, key: str, count: int) -> None:
        """Forget all but so many of the notes that hold a number, those with the largest; the earlier of equal ones."""
        order = sorted((note for note in self.notes if key in note), key=lambda note: (-note[key], note["layer"]))
        for note in order[count:]:
            self.notes.remove(note)
            for name in [name for name in self.tensors if name.startswith(f"{note['layer']}/")]:
                del self.tensors[name]

    def spill(self, part: JournalPart, index: int, patch: Patch) -> None:
        """Hold the changes of a layer on the disk rather than in memory, if they are large and there is a journal.

        On a GPU they stay on it as long as all of them take little of its memory.
        """
        large = {name: edit.value for name, edit in patch.items() if name in self.patch}
        if _bytes(large.values()) < SPILLED:
            return
        device = str(next(iter(large.values())).device)
        if (
            device.startswith("cuda")
            and _bytes(edit.value for edit in self.patch.values()) < total_memory(device) // ON_GPU
        ):
            return
        stored = part.journal.spill(f"layer-{index}", large)
        if stored is not None:
            self.patch |= {name: replace(self.patch[name], value=value) for name, value in stored.items()}
            self.files |= dict.fromkeys(stored, f"layer-{index}")

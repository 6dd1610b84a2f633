"""Repair state: what a paired walk has found on its way, kept so that a killed one goes on."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ..anatomy.patch import Edit, Patch
from ..runtime.memory import total_memory
from ..runtime.progress import say
from ..storage.journal import JournalPart, State

SPILLED = 1 << 20  # bytes of changes of a layer from which on they are kept on the disk, where there is a journal
ON_GPU = 8  # unless all changes together take less than this part of a GPU's memory


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum({one.data_ptr(): one.nbytes for one in tensors}.values())


@dataclass
class RepairState:
    """What has been found on the way; kept together with the streams, so that a killed walk goes on.

    Attributes:
        patch: changes so far.
        notes: what else is needed of the layers that have been passed, as JSON holds it.
        tensors: the same for tensors.
        step: the layer at which the walk begins.
        streams: of both models in front of it.
        files: name of a changed weight -> the file of the journal that holds its change.
    """

    patch: Patch = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
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
        about, files = state.notes["patch"], state.notes["files"]
        try:
            for file in dict.fromkeys(files.values()):
                groups["patch"] |= part.journal.from_spilled(file)
        except OSError:  # after a power failure, say: the streams alone are of no use
            part.kept, part.journal.before = 0, 0.0
            say(f"a file of {part.journal.folder} is not whole: beginning anew")
            return cls()
        patch = {
            name: Edit(kind, groups["patch"][name], axis, strength) for name, (kind, axis, strength) in about.items()
        }
        return cls(patch, state.notes["own"], groups["own"], state.step, groups["stream"], files)

    def keep(self, part: JournalPart, step: int, streams: dict[str, Tensor], *, now: bool = False) -> None:
        """Give it to the journal, if it is time to."""
        files = {name: file for name, file in self.files.items() if name in self.patch}
        tensors = {f"patch/{name}": edit.value for name, edit in self.patch.items() if name not in files}
        tensors |= {f"own/{name}": tensor for name, tensor in self.tensors.items()}
        tensors |= {f"stream/{name}": tensor for name, tensor in streams.items()}
        patch = {name: [edit.kind, edit.axis, edit.strength] for name, edit in self.patch.items()}
        part.keep(step, tensors, {"own": self.notes, "patch": patch, "files": files}, now=now)

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
        stored = part.journal.spilled(f"layer-{index}", large)
        if stored is not None:
            self.patch |= {name: replace(self.patch[name], value=value) for name, value in stored.items()}
            self.files |= dict.fromkeys(stored, f"layer-{index}")

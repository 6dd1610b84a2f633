"""Comparison entries: evaluations and speeds of the same model become one, with a name of its own."""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ..artifacts import NOTHING, Evaluation, Perplexity, Pruned, Removal, TaskResult
from .generation import by_prompt
from .sources import MODEL_FILES, SAME, CompareArgument, ComparisonEntry, timings_of

Key = tuple[str, Removal]


def entries_of(arguments: Sequence[CompareArgument]) -> tuple[list[ComparisonEntry], list[str]]:
    """(one entry per model, the base first, and notes on what was not taken).

    Within an argument the largest model comes first. A model that an earlier argument has shown already is not shown
    again where a later one holds more than one (a run that measures its own base), else it was given on purpose.
    """
    entries: list[ComparisonEntry] = []
    owners: list[CompareArgument] = []
    notes: list[str] = []
    for argument in arguments:
        groups: dict[Key, list[Evaluation]] = {}
        for evaluation in sorted(argument.evaluations, key=lambda evaluation: evaluation.provenance.created):
            groups.setdefault((evaluation.model.fingerprint, evaluation.removal), []).append(evaluation)
        new = {
            key: ComparisonEntry("", group[-1].model, key[1], group[-1].model.parameters - group[-1].parameters)
            for key, group in groups.items()
        }
        for key in sorted(new, key=lambda key: (-new[key].parameters, key[0], key[1].units)):
            earlier = next((entry for entry in entries if entry.key == key), None) if len(new) > 1 else None
            entry = earlier or new[key]
            if earlier is None:
                entries.append(entry)
                owners.append(argument)
            for evaluation in groups[key]:
                _add(entry, evaluation, notes)
    _add_speeds(arguments, entries, owners, notes)
    _name(entries, owners)
    _describe(arguments, entries)
    return entries, [_with_names(note, entries) for note in notes]


def _add(entry: ComparisonEntry, evaluation: Evaluation, notes: list[str]) -> None:
    """Take the figures of an evaluation; of a figure that is there already the newest counts."""
    entry.dtypes.add(evaluation.dtype)
    for kind, mine, more in (
        ("perplexity", entry.texts, evaluation.perplexity),
        ("task", entry.tasks, evaluation.tasks),
        ("agreement", entry.agreement, by_prompt(evaluation.agreement) if evaluation.agreement else {}),
    ):
        for name, item in more.items():
            if name in mine and (difference := _difference(mine[name], item)):
                notes.append(
                    f"{kind} {name} of {_place(entry)} was measured more than once, {difference}: the newest counts"
                )
            mine[name] = item


def _difference(old: Perplexity | TaskResult, new: Perplexity | TaskResult) -> str:
    was, now = old.identity(), new.identity()
    other = [label for label in was if was[label] != now[label]]
    if other:
        return f"with other {', '.join(other)}"
    return "with another result" if abs(old.value - new.value) > SAME * abs(old.value) else ""


def _place(entry: ComparisonEntry) -> str:
    """Stands for the name of an entry that has none yet."""
    return f"\0{id(entry)}\0"


def _with_names(note: str, entries: Sequence[ComparisonEntry]) -> str:
    for entry in entries:
        note = note.replace(_place(entry), entry.name)
    return note


def _add_speeds(
    arguments: Sequence[CompareArgument],
    entries: list[ComparisonEntry],
    owners: list[CompareArgument],
    notes: list[str],
) -> None:
    """To the models of the same argument, else to those of others.

    A model with nothing but its speed gets an entry last.
    """
    for argument in arguments:
        for speed in argument.speeds:
            for side, model in (("against", speed.against), ("model", speed.model)):
                if model is None:
                    continue
                same = [place for place, entry in enumerate(entries) if entry.key == (model.fingerprint, NOTHING)]
                mine = [place for place in same if owners[place] is argument] or same
                if not mine and argument.evaluations:
                    notes.append(f"the speed of {Path(model.source).name} is left out: no evaluation of it was given")
                    continue
                if not mine:
                    mine = [len(entries)]
                    entries.append(ComparisonEntry("", model))
                    owners.append(argument)
                for place in mine:
                    entries[place].timings += timings_of(speed, side)


def _name(entries: list[ComparisonEntry], owners: Sequence[CompareArgument]) -> None:
    """Names as given, else after the file or folder; made unique by the folder above, then by numbers."""
    rows = Counter(id(owner) for owner in owners)
    alone = [rows[id(owner)] == 1 for owner in owners]
    ways: list[Callable[[int], str]] = [
        lambda place: (
            owners[place].name or stem(owners[place].path)
            if alone[place]
            else _name_of_many(owners[place], entries[place])
        ),
        lambda place: f"{_parent(owners[place].path)}/{entries[place].name}",
        lambda place: f"{entries[place].name} ({place + 1})",
    ]
    for way in ways:
        counts = Counter(entry.name for entry in entries)
        for place, entry in enumerate(entries):
            stays = entry.name and (counts[entry.name] == 1 or (alone[place] and owners[place].name))  # given names do
            if not stays:
                entry.name = way(place)


def _name_of_many(owner: CompareArgument, entry: ComparisonEntry) -> str:
    name = stem(entry.model.source) + (f" without {','.join(map(str, entry.removal.units))}" if entry.removal else "")
    return f"{owner.name} {name}" if owner.name else name


def stem(path: str) -> str:
    """The last part of a path or Hub id without the endings that say nothing."""
    name = Path(path).resolve().name if path in (".", "..") else Path(path).name
    return name.removesuffix(".json").removesuffix(MODEL_FILES[0]) or path


def _parent(path: str) -> str:
    return Path(path).absolute().parent.name or "/"


def _describe(arguments: Sequence[CompareArgument], entries: Sequence[ComparisonEntry]) -> None:
    """How pruned models were made, where their own record was found."""
    records = {record.fingerprint: record for argument in arguments for record in argument.pruned}
    for entry in entries:
        if not entry.removal and entry.model.fingerprint in records:
            entry.how = _origin(records[entry.model.fingerprint])


def _origin(record: Pruned) -> str:
    plan = record.plan
    choice = f"{plan.selection}{' by ' + plan.criterion if plan.criterion else ''}"
    repair = f", repaired by {record.compensation.method}" if record.compensation else ""
    proof = "" if record.proof else ", not verified"
    return f"{plan.how_many} removed ({choice}){repair}{proof}"

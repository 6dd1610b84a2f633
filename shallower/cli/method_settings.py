"""Names and settings of methods as they stand on the command line: which criterion, and whose setting is key=value."""

from typing import Any

from .. import methods
from ..errors import UserError
from ..settings.calibration import listed_paths
from ..stages.repair_options import RepairOptions


def criteria_named(given: Any) -> list[str]:
    """Names of criteria, given one by one or with commas; each once, and known."""
    names = list(
        dict.fromkeys(name.strip() for part in listed_paths(given) for name in part.split(",") if name.strip())
    )
    if not names:
        raise UserError(f"--criterion names none; known are {', '.join(methods.names('criteria'))}")
    for name in names:
        methods.check_name("criteria", name)
    return names


def one_criterion(given: Any) -> str:
    """The one criterion that layers are chosen by."""
    names = criteria_named(given)
    if len(names) > 1:
        raise UserError(
            f"--criterion {','.join(names)}: layers are chosen by one criterion; score shows several side by side"
        )
    return names[0]


def settings_by_criterion(given: dict[str, str], names: list[str]) -> dict[str, dict[str, str]]:
    """Settings by criterion: ``NAME:key=value`` for one, ``key=value`` for every one that has the key."""
    found: dict[str, dict[str, str]] = {name: {} for name in names}
    for key, value in given.items():
        owner, colon, own = key.partition(":")
        if colon and owner not in found:
            raise UserError(f"--set {key}: no criterion {owner} is asked for; they are {', '.join(names)}")
        takers = (
            [owner]
            if colon
            else [name for name in names if key in methods.setting_names(methods.find("criteria", name))] or names[:1]
        )
        for name in takers:
            found[name][own if colon else key] = value
    return found


def split_settings(
    given: dict[str, str], criterion: str | None, selection: str | None, repair: RepairOptions | None = None
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Settings of the criterion, the selection and the compensation.

    What none knows stays with one that has settings, to be refused.
    """
    if not given:
        return {}, {}, {}
    named = {"compensation": repair.method if repair else None, "selection": selection, "criteria": criterion}
    known = {kind: methods.setting_names(methods.find(kind, name)) if name else () for kind, name in named.items()}
    last = next((kind for kind in ("criteria", "selection", "compensation") if known[kind]), None)
    last = last or next((kind for kind in ("criteria", "selection", "compensation") if named[kind]), None)
    if last is None:
        raise UserError(f"--set {next(iter(given))}: no method that has settings is at work here")
    parts: dict[str, dict[str, str]] = {kind: {} for kind in known}
    for key, value in given.items():
        owner, colon, own = key.partition(":")
        if colon:
            kind = next((kind for kind, name in named.items() if name == owner), None)
            if kind is None:
                raise UserError(
                    f"--set {key}: no method {owner} is at work here; at work are "
                    f"{', '.join(filter(None, named.values()))}"
                )
            parts[kind][own] = value
            continue
        takers = [kind for kind in known if key in known[kind]]
        if len(takers) > 1:
            names = " or ".join(f"{named[kind]}:{key}" for kind in takers)
            raise UserError(f"--set {key} could be of several methods: write {names}")
        parts[takers[0] if takers else last][key] = value
    return parts["criteria"], parts["selection"], parts["compensation"]

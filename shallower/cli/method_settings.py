"""Names and settings of methods as they stand on the command line: which criterion, and whose setting is key=value."""

from typing import Any

from .. import methods
from ..errors import UserError
from ..settings.calibration import listed_paths
from ..stages.repair_options import RepairOptions


def criteria_of(criteria: Any) -> list[str]:
    """Names of criteria, given one by one or with commas; each once, and known."""
    names = list(
        dict.fromkeys(name.strip() for part in listed_paths(criteria) for name in part.split(",") if name.strip())
    )
    if not names:
        raise UserError(f"--criterion names none; known are {', '.join(methods.names('criteria'))}")
    for name in names:
        methods.check_name("criteria", name)
    return names


def one_criterion(criterion: Any) -> str:
    """The one criterion that layers are chosen by."""
    names = criteria_of(criterion)
    if len(names) > 1:
        raise UserError(
            f"--criterion {','.join(names)}: layers are chosen by one criterion; score shows several side by side"
        )
    return names[0]


def settings_by_criterion(settings: dict[str, str], names: list[str]) -> dict[str, dict[str, str]]:
    """Settings by criterion: ``NAME:key=value`` for one, ``key=value`` for every one that has the key."""
    by_criterion: dict[str, dict[str, str]] = {name: {} for name in names}
    for key, value in settings.items():
        owner, colon, own = key.partition(":")
        if colon and owner not in by_criterion:
            raise UserError(f"--set {key}: no criterion {owner} is asked for; they are {', '.join(names)}")
        takers = (
            [owner]
            if colon
            else [name for name in names if key in methods.setting_names(methods.find("criteria", name))] or names[:1]
        )
        for name in takers:
            by_criterion[name][own if colon else key] = value
    return by_criterion


def split_settings(
    settings: dict[str, str], criterion: str | None, selection: str | None, repair: RepairOptions | None = None
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Settings of the criterion, the selection and the compensation.

    What none knows stays with one that has settings, to be refused.
    """
    if not settings:
        return {}, {}, {}
    method_names = {"compensation": repair.method if repair else None, "selection": selection, "criteria": criterion}
    keys = {
        kind: methods.setting_names(methods.find(kind, name)) if name else () for kind, name in method_names.items()
    }
    fallback = next((kind for kind in ("criteria", "selection", "compensation") if keys[kind]), None)
    fallback = fallback or next(
        (kind for kind in ("criteria", "selection", "compensation") if method_names[kind]), None
    )
    if fallback is None:
        raise UserError(f"--set {next(iter(settings))}: no method that has settings is at work here")
    parts: dict[str, dict[str, str]] = {kind: {} for kind in keys}
    for key, value in settings.items():
        owner, colon, own = key.partition(":")
        if colon:
            kind = next((kind for kind, name in method_names.items() if name == owner), None)
            if kind is None:
                raise UserError(
                    f"--set {key}: no method {owner} is at work here; at work are "
                    f"{', '.join(filter(None, method_names.values()))}"
                )
            parts[kind][own] = value
            continue
        takers = [kind for kind in keys if key in keys[kind]]
        if len(takers) > 1:
            names = " or ".join(f"{method_names[kind]}:{key}" for kind in takers)
            raise UserError(f"--set {key} could be of several methods: write {names}")
        parts[takers[0] if takers else fallback][key] = value
    return parts["criteria"], parts["selection"], parts["compensation"]

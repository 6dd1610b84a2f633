"""Exchange of plans with other tools: their lists of layers in, mergekit's recipe and llama.cpp's list out.

In: shortened-llm's ``block_order.csv`` (layers in the order of removal), PruneMe's ``layer_distances.csv``
(block_start, block_end, average_distance; the run with the least distance goes) and EvoPress' list (a line per layer).
Out: a passthrough merge for mergekit, and what llama-quantize's ``--prune-layers`` takes.
"""

import csv
import re
from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..artifacts import Plan, save
from ..errors import UserError, argument
from ..settings.quantities import unit_names
from ..storage.files import write_atomic
from ..storage.ownership import artifact_place
from ..storage.paths import place

SUFFIXES = (".csv", ".txt")
DISTANCES = ("block_start", "block_end", "average_distance")
STATES = {"none": ("",), "attn": ("mlp",), "mlp": ("attention",), "attn+mlp": ()}  # what stays -> what goes
LARGEST = 1 << 20  # bytes of a list
OUT = (".yaml", ".yml", ".txt")  # mergekit's recipe, and llama.cpp's list
MARK = "# made by shallower"
LIST = re.compile(rb"[\d,\s]*")


def listed_units(text: str, name: str = "layers") -> list[str] | None:
    """Names of the units that a list of another tool removes; None where the text names no such file.

    Args:
        text: ``FILE``, or ``FILE:N`` for the first N of an order.
        name: of the argument, for messages.
    Raises:
        UserError: no such list, or an order without a number.
    """
    path, colon, number = text.rpartition(":")
    if not (colon and number.isdigit()):
        path, number = text, ""
    file = place(path)
    if file.suffix not in SUFFIXES:
        return None
    if not file.is_file():
        raise UserError("no such file; give layers such as 3,8-10, or a list that another tool wrote", **{name: path})
    if file.stat().st_size > LARGEST:
        raise UserError(f"a list of layers has no {file.stat().st_size:,} bytes", **{name: path})
    lines = [line.strip() for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    rows = [[cell.strip() for cell in row] for row in csv.reader(lines)]
    if rows and rows[0][: len(DISTANCES)] == [*DISTANCES]:
        found = _nearest(rows[1:], file)
    elif rows and all(len(row) == 1 and row[0].lower() in STATES for row in rows):
        gone = ((layer, part) for layer, row in enumerate(rows) for part in STATES[row[0].lower()])
        found = [f"{layer}.{part}" if part else str(layer) for layer, part in gone]
    elif rows and all(len(row) >= 2 and row[1] in ("True", "False") for row in rows):
        found = [row[0].rpartition(".")[2] for row in rows if row[1] == "True"]
    elif rows and all(cell.isdigit() for row in rows for cell in row):
        return _first([cell for row in rows for cell in row], number, file, name)
    else:
        raise UserError(
            f"{file} is no list that is known here: layers in the order of removal (shortened-llm's block_order.csv), "
            f"{', '.join(DISTANCES)} (PruneMe), or a line per layer ({', '.join(STATES)}: EvoPress)"
        )
    if number:
        raise UserError(f"{file} says itself how many layers go: leave :{number} out", **{name: text})
    if not found:
        raise UserError(f"{file} removes nothing", **{name: text})
    return found


def named_units(layers: Any, name: str = "layers") -> tuple[str, ...]:
    """Names of units as ``unit_names`` reads them, or those that a list of another tool removes."""
    found = listed_units(layers, name) if isinstance(layers, str) else None
    return unit_names(layers if found is None else found, name)


def _first(order: list[str], number: str, file: Path, name: str) -> list[str]:
    """The first layers of an order."""
    if not number:
        raise UserError(f"it orders {len(order)} layers: say how many go, as {file}:6", **{name: file})
    if not 1 <= int(number) < len(order):
        raise UserError(
            f"between 1 and {len(order) - 1} of the {len(order)} layers in it", **{name: f"{file}:{number}"}
        )
    return order[: int(number)]


def _nearest(rows: list[list[str]], file: Path) -> list[str]:
    """The layers between the two streams that are nearest: block_start to block_end - 1, counted from 0."""
    try:
        found = min(((float(row[2]), int(row[0]), int(row[1])) for row in rows), default=None)
    except (ValueError, IndexError) as error:
        raise UserError(f"{file}: each line needs {', '.join(DISTANCES)}") from error
    return [] if found is None else [str(layer) for layer in range(found[1], found[2])]


def plan_place(out: str | Path | None, inputs: Iterable[Any] = ()) -> Path | None:
    """Where a plan goes: as an artifact, or in another tool's form, told by the suffix; checked to be free."""
    target = place(out) if out is not None else None
    if target is None or target.suffix not in OUT:
        return artifact_place(target, "plan", inputs)
    _check_exchanged(target)
    return target


def _check_exchanged(target: Path) -> None:
    if target.is_dir() or target.is_symlink():
        raise UserError("it is no plain file; give the name of a new one", out=target)
    if target.is_file():
        start = target.read_bytes()[: len(MARK)].decode("utf-8", "replace")
        if not (start.startswith(MARK) or (target.suffix == ".txt" and LIST.fullmatch(target.read_bytes()))):
            raise UserError("it holds something else, which is not replaced: give another name", out=target)


def write_plan(plan: Plan, target: Path) -> None:
    """Write a plan in the form that the suffix of its place names.

    Raises:
        UserError: parts of layers go, which that tool does not remove.
    """
    if target.suffix in OUT:
        write_atomic(target, recipe_text(plan) if target.suffix != ".txt" else list_text(plan))
    else:
        save(plan, target)


def recipe_text(plan: Plan) -> str:
    """mergekit's recipe of the same removal.

    Raises:
        UserError: parts of layers go, which mergekit does not remove.
    """
    _check_whole(plan, "mergekit")
    lines = [f"{MARK}: mergekit-yaml FILE DIR", "slices:"]
    for start, stop in _runs(plan.kept):
        lines += ["  - sources:", f"      - model: {plan.model.source}", f"        layer_range: [{start}, {stop}]"]
    return "\n".join([*lines, "merge_method: passthrough", f"dtype: {_dtype(plan)}", ""])


def list_text(plan: Plan) -> str:
    """The layers that go as llama-quantize's ``--prune-layers`` takes them.

    Raises:
        UserError: parts of layers go.
    """
    _check_whole(plan, "llama.cpp")
    return ",".join(map(str, sorted(plan.removed))) + "\n"


def _runs(kept: Sequence[int]) -> list[tuple[int, int]]:
    """(first layer, the one behind the last) of neighbours that stay."""
    cuts = [0, *(place for place, (one, other) in enumerate(pairwise(kept), 1) if other != one + 1), len(kept)]
    return [(kept[start], kept[stop - 1] + 1) for start, stop in pairwise(cuts)]


def _dtype(plan: Plan) -> str:
    """The type that mergekit is to write: that of the weights."""
    return plan.model.storage if plan.model.storage in ("float16", "float32", "bfloat16") else "bfloat16"


def _check_whole(plan: Plan, tool: str) -> None:
    if plan.units:
        raise UserError(
            f"{tool} removes whole layers only, and the plan names {next(iter(plan.units))}: write {argument('out')} "
            "as .json, and prune by it"
        )

"""Data of lm-eval's tasks: from the Hub as it says, or from local files, with examples for the prompts where there are
some.
"""

import difflib
import functools
import json
from pathlib import Path
from types import ModuleType
from typing import Any

from ..data.readers import Row, rows
from ..errors import UserError, argument
from ..runtime.progress import say
from ..settings.evaluation import SETS, Tasks
from .items import FIELDS, check_item, check_items

ALPACA = ("instruction", "output")  # of an example in instruction form: its question and its answer
ANSWERED = {"gsm8k": ("question", "answer")}  # tasks that take such examples, and where these go


def harness_of() -> ModuleType:
    """lm-eval.

    Raises:
        UserError: it is not installed.
    """
    try:
        import lm_eval
        import lm_eval.evaluator
        import lm_eval.tasks
    except ImportError as error:
        raise UserError(f"{argument('tasks')} needs the package lm-eval; pip install 'shallower[eval]'") from error
    return lm_eval


@functools.cache
def task_manager() -> Any:
    """lm-eval's index of tasks, read once: it takes seconds."""
    return harness_of().tasks.TaskManager()


def check_names(names: list[str], known: list[str]) -> None:
    """Raise a UserError for a name that lm-eval does not know; says the nearest ones."""
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, [*SETS, *known], 4, 0.5)
            raise UserError(
                f"unknown task {name!r}; {'nearest are ' + ', '.join(near) if near else 'lm-eval ls tasks lists all'}"
            )


def check_task_data(tasks: Tasks, name: str) -> None:
    """Raise a UserError for local items or examples of a task that are not there or do not fit."""
    if tasks.data is not None:
        check_items(Path(tasks.data), name)
    if (file := examples_file(tasks, name)) is not None:
        examples_of(file, name)
    elif tasks.data is not None and tasks.shots:
        raise UserError(
            f"{name} has no examples: give {argument('examples')} a folder with {name}.jsonl, or leave this out",
            shots=tasks.shots,
        )


def examples_file(tasks: Tasks, name: str) -> Path | None:
    """The file that a task's examples are in, if there is one.

    Raises:
        UserError: it was named and is not there.
    """
    if tasks.examples is None:
        return None
    place = Path(tasks.examples)
    if place.is_dir():
        found = place / f"{name}.jsonl"
        return found if found.is_file() else None
    if len(tasks.every()) > 1:
        raise UserError(
            f"a file holds the examples of one task, and {', '.join(tasks.every())} are asked for: give a folder of "
            "NAME.jsonl",
            examples=place,
        )
    return place


def examples_of(file: Path, task: str) -> list[Row]:
    """Examples of a task with the fields of its items, each checked.

    Rows in instruction form (``instruction``, ``output``) become questions with answers, where the task has these.

    Raises:
        UserError: no such file, none in it, or a line that does not fit.
    """
    found = []
    for where, row in rows(file, "examples"):
        if task in ANSWERED and not row.keys() & {*ANSWERED[task]} and row.keys() >= {*ALPACA}:
            row = dict(zip(ANSWERED[task], (row[name] for name in ALPACA), strict=True))
        check_item(row, where, task)
        found.append(row)
    if not found:
        raise UserError(f"{argument('examples', file)} holds no examples; write one JSON object a line")
    return found


def loaded_tasks(manager: Any, name: str, tasks: Tasks, place: Path) -> list[Any]:
    """lm-eval's tasks of a name, with their data; a group is many.

    Args:
        place: an empty folder that outlives the tasks, for the configs and tables made of local data.
    """
    spec, source = name, "the Hub"
    if tasks.data is not None:
        source = check_items(Path(tasks.data), name)
        entry = manager.task_index[name]
        if entry.yaml_path is None:
            raise UserError(
                f"{argument('data')}: {name} is a group, or no task with a config of its own; name its tasks one by one"
            )
        spec = str(place / f"{name}.yaml")
        config = _local(name, entry.yaml_path, source, examples_file(tasks, name), place)
        Path(spec).write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    say(f"reading {name}")
    try:
        found = [*manager.load([spec])["tasks"].values()]
    except Exception as error:  # the libraries below raise many kinds: offline, gated, a field that a prompt misses
        hint = (
            "check the file against the Hub's data set"
            if tasks.data is not None
            else f"check the network, or give {argument('data', 'DIR')}"
        )
        said = " ".join(str(error).split())[:160] or type(error).__name__
        raise UserError(f"task {name}: its data from {source} cannot be read ({said}): {hint}") from error
    for task in found:
        _set_shots(task, name, tasks)
    return found


def _set_shots(task: Any, name: str, tasks: Tasks) -> None:
    """As many examples in a prompt as are asked for; none of local items, which would be answers to other items."""
    if tasks.data is not None and examples_file(tasks, name) is None:
        task.set_config("num_fewshot", 0)
    elif tasks.shots is not None:
        task.set_config("num_fewshot", tasks.shots)


def _local(name: str, base: Path, data: Path, examples: Path | None, place: Path) -> dict[str, Any]:
    """A task config that takes everything but the data from lm-eval's own."""
    files = {"test": str(data.resolve())}
    if examples is not None:
        files = _alike(name, data, examples, place)
    return {
        "include": str(Path(base).resolve()),
        "task": name,
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": files, "cache_dir": str(place / "tables")},
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": "examples" if examples is not None else "test",
    }


def _alike(name: str, data: Path, examples: Path, place: Path) -> dict[str, str]:
    """Items and examples as files with the same fields: one table has to hold both."""
    both = {"test": [row for _, row in rows(data, "data")], "examples": examples_of(examples, name)}
    fields = list(FIELDS.get(name, ({},))[0]) or [*both["test"][0].keys() & both["examples"][0].keys()]
    files = {}
    for split, items in both.items():
        path = place / f"{name}-{split}.jsonl"
        lines = (json.dumps({field: row.get(field) for field in fields}, ensure_ascii=False) for row in items)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        files[split] = str(path)
    return files

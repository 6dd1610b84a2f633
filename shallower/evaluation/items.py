"""Task items from local .jsonl files, checked field by field before a model is asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..data.readers import Row, rows
from ..errors import UserError, argument

Check = Callable[[dict[str, Any]], bool]
CHOICES = {"choices": dict, "answerKey": str}


def _choice(row: dict[str, Any]) -> bool:
    choices = row["choices"]
    listed = all(isinstance(choices.get(key), list) for key in ("text", "label"))
    return listed and len(choices["text"]) == len(choices["label"]) and row["answerKey"].strip() in choices["label"]


def _label(count: Callable[[dict[str, Any]], int]) -> Check:
    return lambda row: str(row["label"]).isdigit() and int(row["label"]) < count(row)


_ANSWER = "answerKey must be one of choices.label, and choices hold as many text as label"
# the fields that the prompts of lm-eval read, then what must hold of them
FIELDS: dict[str, tuple[dict[str, type | tuple], Check, str]] = {
    "boolq": ({"question": str, "passage": str, "label": (int, str)}, _label(lambda row: 2), "label must be 0 or 1"),
    "piqa": (
        {"goal": str, "sol1": str, "sol2": str, "label": (int, str)},
        _label(lambda row: 2),
        "label must be 0 or 1",
    ),
    "hellaswag": (
        {"activity_label": str, "ctx_a": str, "ctx_b": str, "endings": list, "label": (int, str)},
        _label(lambda row: len(row["endings"])),
        "label must be the number of one of the endings",
    ),
    "winogrande": (
        {"sentence": str, "option1": str, "option2": str, "answer": str},
        lambda row: "_" in row["sentence"] and row["answer"] in ("1", "2"),
        "sentence must hold a _, and answer be '1' or '2'",
    ),
    "arc_easy": ({"question": str, **CHOICES}, _choice, _ANSWER),
    "arc_challenge": ({"question": str, **CHOICES}, _choice, _ANSWER),
    "openbookqa": ({"question_stem": str, **CHOICES}, _choice, _ANSWER),
    "gsm8k": (
        {"question": str, "answer": str},
        lambda row: "#### " in row["answer"],
        "answer must end in '#### ' and the number",
    ),
    "triviaqa": (
        {"question": str, "answer": dict},
        lambda row: isinstance(row["answer"].get("aliases"), list) and bool(row["answer"]["aliases"]),
        "answer must hold a list of aliases, each a way of writing it",
    ),
    "lambada_openai": (
        {"text": str},
        lambda row: " " in row["text"].strip(),
        "text must have a last word behind a blank: it is what is asked for",
    ),
}


def check_items(folder: Path, task: str) -> Path:
    """The file ``folder/task.jsonl``, every line of it checked.

    Raises:
        UserError: no such file, no items, or a line that does not fit (its number and field).
    """
    path = folder / f"{task}.jsonl"
    if not path.is_file():
        there = ", ".join(sorted(file.stem for file in folder.glob("*.jsonl"))[:12]) if folder.is_dir() else ""
        raise UserError(
            f"{argument('data', folder)}: no {task}.jsonl there; "
            f"{f'it has {there}' if there else 'give a folder of .jsonl files'}"
        )
    if not sum(check_item(row, where, task) for where, row in rows(path, "data")):
        raise UserError(f"{path} holds no items; write one JSON object a line")
    return path


def check_item(row: Row, where: str, task: str) -> bool:
    """Raise a UserError for an item that does not fit a task; True otherwise."""
    fields, check, rule = FIELDS.get(task, ({}, lambda row: True, ""))
    for field, kind in fields.items():
        if field not in row:
            raise UserError(
                f"{where} has no field {field!r} (it has {', '.join(list(row)[:8])}); {task} needs {', '.join(fields)}"
            )
        if not isinstance(row[field], kind):
            wanted = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise UserError(f"{where}: field {field!r} is a {type(row[field]).__name__}; {task} needs a {wanted} there")
    if not check(row):
        raise UserError(f"{where}: {rule}")
    return True

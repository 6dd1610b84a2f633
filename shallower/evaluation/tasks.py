"""Zero-shot tasks through lm-eval: its prompts, its metrics, its model class around the model that is open already.

Data come from the Hub as lm-eval says, or from local .jsonl files, one per task, with the fields of the Hub's data
sets. Which metric counts follows Shortened LLaMA (arXiv 2402.02834): acc_norm for HellaSwag, ARC-challenge and
OpenBookQA, acc for BoolQ, PIQA, WinoGrande and ARC-easy; elsewhere acc_norm, acc or exact_match where a task has one,
else its first.
"""

import contextlib
import hashlib
import json
import logging
import math
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from tqdm.std import tqdm

from ..anatomy.model import Model
from ..artifacts import TaskResult
from ..artifacts.removal import NOTHING, Removal
from ..data.tokens import encode
from ..errors import UserError
from ..runtime.progress import Meter, meter, say
from ..settings.evaluation import Tasks
from ..storage.journal import NO_JOURNAL, Journal
from .health import first_broken
from .task_data import check_names, check_task_data, harness_of, loaded_tasks, task_manager

PREFERRED = ("acc_norm", "acc", "exact_match")  # of the metrics of other tasks, the first that there is
METRICS = dict.fromkeys(("boolq", "piqa", "winogrande", "arc_easy"), "acc")
WRITTEN = ("acc", "exact_match")  # shares of answers that guessing does not give, where no choices are named
TASK_LOGIT_BYTES = 1 << 28  # of one batch's logits in float32, at most; lm-eval holds a copy or two
REQUEST_PARTS = 50  # into how many parts requests are divided to be kept
FEWEST_REQUESTS = 512  # requests of one part
ROW_TOKENS, MOST_ROWS = 128, 64  # a batch that writes answers: tokens that a row stands for, and rows at most


def check_tasks(tasks: Tasks) -> None:
    """Raise a UserError for names that lm-eval does not know, or local data that are not there or do not fit.

    No model is needed.
    """
    with _quiet(harness_of().evaluator):
        check_names(tasks.every(), task_manager().all_tasks)
    for name in tasks.every():
        check_task_data(tasks, name)


def zero_shot(
    model: Model,
    tasks: Tasks,
    *,
    removal: Removal = NOTHING,
    journal: Callable[..., Journal] = lambda requests: NO_JOURNAL,
) -> dict[str, TaskResult]:
    """Task -> value, stderr, metric, count, version, items (the metric of each) and all of lm-eval's metrics.

    Args:
        removal: what to leave out virtually.
        journal: makes what keeps the answers to requests, a fiftieth of them at a time, given their hash as
            ``requests``.
    Raises:
        UserError: lm-eval is missing, an unknown task, data that do not fit, or a model that yields NaN.
    """
    harness = harness_of()
    with _quiet(harness.evaluator):
        manager = task_manager()
        check_names(tasks.every(), manager.all_tasks)
        with tempfile.TemporaryDirectory(prefix="shallower-tasks-") as place, model.without(removal):
            ready = [task for name in tasks.every() for task in loaded_tasks(manager, name, tasks, Path(place))]
            lm = _wrap(model, removal, journal)
            results = harness.simple_evaluate(lm, tasks=ready, limit=tasks.limit, task_manager=manager)
    return {name: _result(name, results) for name in results["samples"]}


def mean_of(tasks: dict[str, TaskResult]) -> float | None:
    """The unweighted mean of the tasks' values."""
    return sum(item.value for item in tasks.values()) / len(tasks) if tasks else None


def centred_mean(tasks: dict[str, TaskResult]) -> float | None:
    """The unweighted mean of the tasks' values centred on chance; None where that is not known of all."""
    values = [item.centred for item in tasks.values()]
    return None if not values or None in values else sum(values) / len(values)


def _wrap(model: Model, removal: Removal, journal: Callable[..., Journal]) -> Any:
    """The open model as lm-eval's own model class, batched by length within a number of tokens."""
    from lm_eval.models.huggingface import HFLM

    most = max(1, min(model.batch_tokens, TASK_LOGIT_BYTES // (4 * model.vocabulary)))

    class Open(HFLM):
        def _batch_scheduler(self, pos: int, requests: tuple) -> int:
            if pos == 0:
                self.sizes = batch_sizes([len(context) + len(answer) for _, context, answer in requests], most)
            return self.sizes[pos]

        def _loglikelihood_tokens(
            self, requests: list, disable_tqdm: bool = False, override_bs: int | None = None
        ) -> list:
            tokens = [[*context, *answer] for _, context, answer in requests]
            request_journal = journal(requests=_digest([[context, answer] for _, context, answer in requests]))
            answer = partial(self.answers, override_bs=override_bs)
            return [*map(tuple, _in_parts(requests, tokens, FEWEST_REQUESTS, request_journal, answer))]

        def generate_until(self, requests: list, disable_tqdm: bool = False) -> list[str]:
            longest = max(request.args[1].get("max_gen_toks") or self.max_gen_toks for request in requests)
            if longest >= self.max_length:
                raise UserError(
                    f"a task's answers have up to {longest} tokens, and the model reads {self.max_length} in all: "
                    "leave that task out"
                )
            request_journal = journal(requests=_digest([list(request.args) for request in requests]))
            texts = [request.args[0] for request in requests]
            rows = max(1, min(MOST_ROWS, most // ROW_TOKENS))
            self.batch_size_per_gpu = rows  # else it tries the longest there are
            found = _in_parts(requests, texts, rows, request_journal, self.written)
            self.batch_size_per_gpu = "auto"
            return found

        def written(self, requests: list, done: Meter) -> list[str]:
            texts = super().generate_until(requests, True)
            done.add(len(requests))
            return texts

        def answers(self, requests: list, done: Meter, override_bs: int | None) -> list[tuple[float, bool]]:
            self.done = done
            values = super()._loglikelihood_tokens(requests, True, override_bs)
            for (_, context, answer), (value, _) in zip(requests, values, strict=True):
                if not math.isfinite(value):
                    tokens = torch.tensor([(context + answer)[-self.max_length :]])
                    raise UserError(
                        f"the model yields NaN or infinite losses on a task: {first_broken(model, tokens, removal)}"
                    )
            return [(float(value), bool(likeliest)) for value, likeliest in values]

        def _model_call(self, inps: torch.Tensor, **options: Any) -> torch.Tensor:
            logits = super()._model_call(inps, **options)
            self.done.add(min(len(inps), self.done.total - self.done.done))
            return logits

    how = {"pretrained": model.module, "tokenizer": model.tokenizer, "backend": "causal", "batch_size": "auto"}
    lm = Open(**how, prefix_token_id=_prefix(model.tokenizer))
    lm._device = torch.device(model.device)  # a layered model's own weights may be nowhere yet
    return lm


def _in_parts(requests: list, keys: list, least: int, journal: Journal, answer: Callable[[list, Meter], list]) -> list:
    """Answers to requests, the longest first, kept part by part.

    Args:
        keys: what each is sorted by, its length before all.
        least: requests of one part, at least.
        answer: answers to some of them; it counts them.
    """
    order = sorted(range(len(requests)), key=lambda place: (-len(keys[place]), keys[place]))
    size = max(least, -(-len(requests) // REQUEST_PARTS))
    answers: list = [None] * len(requests)
    past = min(size * len(journal.done), len(requests))
    if journal.resumed:
        say(f"resuming at task requests {past} of {len(requests)}")
    with meter("task requests", len(requests), past) as done:
        for start in range(0, len(requests), size):
            part = order[start : start + size]
            values = journal.memo(str(start), partial(answer, [requests[place] for place in part], done))
            for place, value in zip(part, values, strict=True):
                answers[place] = value
    return answers


def _prefix(tokenizer: Any) -> int | None:
    """What stands in front of an answer without a question, where the tokenizer has neither BOS nor EOS.

    A line break.
    """
    if tokenizer.bos_token_id is not None or tokenizer.eos_token_id is not None:
        return None
    return encode(tokenizer, "\n")[-1]


def _digest(requests: list) -> str:
    """A hash of what all requests ask, in order."""
    return hashlib.sha256(json.dumps(requests).encode()).hexdigest()


def batch_sizes(lengths: list[int], most: int) -> list[int]:
    """For every request, longest first, the number of requests in its batch.

    Padded, at most ``most`` tokens, at least one.
    """
    sizes: list[int] = []
    while len(sizes) < len(lengths):
        size = min(max(1, most // lengths[len(sizes)]), len(lengths) - len(sizes))
        sizes += [size] * size
    return sizes


def _result(name: str, results: dict[str, Any]) -> TaskResult:
    """What the artifact keeps of a task."""
    row = results["results"][name]
    shots = int(results["n-shot"].get(name) or 0)
    every = list(dict.fromkeys(item.get("filter", "none") for item in results["samples"][name]))
    read = every[0 if shots else -1]  # strict where examples show the form of an answer; gsm8k has a lenient one too
    samples = [item for item in results["samples"][name] if item.get("filter", "none") == read]
    named = [(*key.partition(",")[::2], value) for key, value in row.items() if "," in key]
    figures = {key: value for key, way, value in named if way == read and not isinstance(value, str)}
    metrics = {key: value for key, value in figures.items() if not key.endswith("_stderr")}
    metric = METRICS.get(name) or next((one for one in PREFERRED if one in metrics), next(iter(metrics)))
    items = [item[metric] for item in sorted(samples, key=lambda item: item["doc_id"]) if metric in item]
    digest = hashlib.sha256("".join(item["doc_hash"] + item["prompt_hash"] for item in samples).encode()).hexdigest()
    return TaskResult(
        value=float(metrics[metric]),
        stderr=figures.get(f"{metric}_stderr"),
        metric=metric,
        chance=_chance(results["configs"][name], samples, metric),
        shots=shots or None,
        count=len(samples),
        version=results["versions"].get(name),
        metrics={key: float(value) for key, value in figures.items()}
        | {f"{key} ({way})": float(value) for key, way, value in named if way != read and not isinstance(value, str)},
        hash=digest[:16],
        items=[round(float(item), 6) for item in items if isinstance(item, (int, float))],
    )


def _chance(config: dict[str, Any], samples: list[dict[str, Any]], metric: str) -> float | None:
    """What guessing gives; None where that is not known."""
    if config.get("output_type") == "multiple_choice":
        return sum(1 / len(item["resps"]) for item in samples) / len(samples) if metric.startswith("acc") else None
    return 0.0 if metric in WRITTEN else None


@contextlib.contextmanager
def _quiet(evaluator: ModuleType) -> Iterator[None]:
    """Silence what the harness and its data sets log, draw and warn of; what matters here is raised or metered."""
    loggers = [logging.getLogger(name) for name in ("lm_eval", "lm-eval", "datasets", "huggingface_hub")]
    levels = [logger.level for logger in loggers]
    make_bar = tqdm.__init__
    read_commit = evaluator.get_git_commit_hash
    try:
        evaluator.get_git_commit_hash = str  # git would complain of a working directory that is no repository
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        tqdm.__init__ = lambda bar, *args, **options: make_bar(bar, *args, **options | {"disable": True})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        tqdm.__init__ = make_bar
        evaluator.get_git_commit_hash = read_commit
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)

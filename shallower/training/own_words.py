"""Own words: the unpruned model's answers to prompts, made into examples that the pruned one is trained on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from ..anatomy.generation import Generation, rows_at_once
from ..artifacts import OwnAnswers
from ..data.packing import Documents
from ..data.readers import OWN_WORDS
from ..errors import Stopped, UserError
from ..runtime import distributed
from ..runtime.progress import meter, say
from ..runtime.signals import patient, stop_asked
from ..walk.run import load_weights
from .questions import Answer, AnswerFile, Questions

AT_ONCE = {"cpu": 16, "cuda": 128}  # prompts of a batch, at most
STEPS = 1000  # of the progress shown


def own_words(questions: Questions, folder: Path, device: str, length: int) -> tuple[Documents, OwnAnswers]:
    """Prompts with the unpruned model's answers as examples to train on, and what is to be told of them.

    Answers that lie in ``folder`` from an earlier run with the same model, prompts and settings are taken; only for
    others is the model loaded, and it is unloaded again. With several processes each answers a share of every round.

    Args:
        length: tokens of a sequence, at which examples are cut off.
    Raises:
        UserError: all answers are empty, the file is not as it was written, or another process writes it.
        DiskError: the disk refuses; what is written so far stays.
    """
    file = AnswerFile(folder / f"answers-{questions.hash}.jsonl", questions)
    with file.claimed() as known:
        if not questions.used(known)[1]:
            _ask(questions, file, known, device)
    answers, _ = questions.used(known)
    kept = [one for one in answers if not one.empty]
    source = questions.teacher.checkpoint.source
    if not kept:
        raise UserError(
            f"all {len(answers)} answers of {source} are empty ({file.path} holds them): ask it in its own form, by "
            "prompts in another field, or ask a model that was trained to answer"
        )
    empty = len(answers) - len(kept)
    say(f"{len(kept)} answers of {source} in {file.path}" + (f", {empty} empty ones left out" if empty else ""))
    prompts = [questions.prompts.items[one.number].ids for one in kept]
    ids = [np.array([*asked, *one.ids], dtype=np.int32) for asked, one in zip(prompts, kept, strict=True)]
    name = ", ".join(OWN_WORDS + source for source in questions.sources)
    end = questions.tokenizer.eos_token_id
    return Documents(ids, [*map(len, prompts)], True, name, end, cut_off=length), _told(questions, answers, kept)


def _told(questions: Questions, answers: list[Answer], kept: list[Answer]) -> OwnAnswers:
    how = questions.answering
    return OwnAnswers(
        teacher=questions.teacher.checkpoint.source,
        fingerprint=questions.teacher.record.fingerprint,
        prompts=len(answers),
        long=questions.prompts.long,
        answers=len(kept),
        empty=len(answers) - len(kept),
        cut=sum(not one.ended for one in kept),
        tokens=sum(len(one.ids) for one in kept),
        longest=how.answer_tokens,
        temperature=how.answer_temperature,
        seed=questions.key["seed"],
        template=questions.prompts.template,
        hash=questions.hash,
    )


def _ask(questions: Questions, file: "AnswerFile", known: dict[int, Answer], device: str) -> None:
    """Ask until there are enough answers; each batch is kept at once."""
    teacher, how = questions.teacher, questions.answering
    load_weights(teacher)
    longest, temperature = how.answer_tokens, how.answer_temperature
    generation = Generation(teacher.module, questions.tokenizer, longest=longest, temperature=temperature)
    rows = _rows(questions, generation, device)
    if known:
        say(f"resuming at answer {len(known)} of {file.path}")
    drawn = f"drawn at temperature {temperature}" if temperature else "the likeliest tokens"
    say(f"{teacher.checkpoint.source} answers, {rows} prompts at once, {drawn}, {longest} tokens at most")
    share = questions.share_done(known)
    with meter("answering", STEPS, int(STEPS * share(0))) as shown, patient(), _sparing_random(device):

        def tell(ahead: float) -> None:
            reached = min(int(STEPS * share(ahead)), STEPS - bool(ahead))  # the end is reached by answers alone
            shown.add(max(0, reached - shown.done), f"{len(known)} answers")

        while not questions.used(known)[1]:
            waiting = [number for number in questions.order if number not in known][: rows * distributed.size()]
            mine = waiting[distributed.rank() * rows :][:rows]
            found, rows = _answers(questions, generation, mine, rows, tell)
            rows = min(distributed.all_gather(rows))
            new = [one for part in distributed.all_gather(found) for one in part]
            file.add(new)
            known.update({one.number: one for one in new})
            share = questions.share_done(known)
            tell(0)
            if asked := max(distributed.all_gather(stop_asked())):
                kept = f"{len(known)} answers are kept in {file.path}: the same command goes on from there"
                raise Stopped(asked, kept)
    del generation
    teacher.unload()


def _rows(questions: Questions, generation: Generation, device: str) -> int:
    """Prompts of a batch."""
    positions = max(len(one.ids) for one in questions.prompts.items) + generation.longest
    return rows_at_once(generation, questions.teacher.checkpoint, positions, device, AT_ONCE)


def _answers(
    questions: Questions, generation: Generation, numbers: list[int], rows: int, tell: Callable[[float], None]
) -> tuple[list[Answer], int]:
    """Answers to the prompts of these numbers, and how many prompts fit at once: fewer where memory was short."""
    answers: list[Answer] = []

    def watch(tokens: int) -> None:
        tell(distributed.size() * (len(answers) + len(batch) * tokens / generation.longest))

    while len(answers) < len(numbers):
        batch = numbers[len(answers) :][:rows]
        torch.manual_seed(questions.seed * 1_000_003 + batch[0])
        try:
            found = generation.answers([questions.prompts.items[number].ids for number in batch], watch)
        except torch.OutOfMemoryError as error:
            if rows == 1:
                raise UserError(
                    "out of memory while one prompt is answered: a smaller longest answer may fit",
                    answer_tokens=generation.longest,
                ) from error
            rows = len(batch) // 2 or 1
            say(f"out of memory: from now on {rows} prompts at once")
        else:
            answers += [_read(questions, generation, *pair) for pair in zip(batch, found, strict=True)]
            continue
        torch.cuda.empty_cache()  # here, where the traceback no longer holds the tensors
    return answers, rows


def _read(questions: Questions, generation: Generation, number: int, ids: list[int]) -> Answer:
    text = questions.tokenizer.decode(ids, skip_special_tokens=True)
    return Answer(number, ids, text, bool(ids) and ids[-1] in generation.ends)


@contextmanager
def _sparing_random(device: str) -> Iterator[None]:
    """Leave torch's random state as it was."""
    cuda = [torch.device(device)] if device.startswith("cuda") else []
    with torch.random.fork_rng(devices=cuda):
        yield

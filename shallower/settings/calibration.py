"""Calibration settings: which texts, how many samples of which length; nothing heavy is imported here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os import PathLike

from ..errors import UserError, argument
from .fields import option, set_field
from .quantities import count_of

GROUP = "Calibration"
BOS_RULES = ("auto", "first", "every", "none")
SAMPLES = 64
NAMED = {"default": (SAMPLES, 128), "shortened-llama": (10, 128)}  # samples, tokens of each; the second is the paper's
Paths = str | PathLike | Sequence[str | PathLike] | None


def listed_paths(paths: Paths) -> tuple[str, ...]:
    """One path or several as a tuple of texts."""
    if paths is None:
        return ()
    return (str(paths),) if isinstance(paths, (str, PathLike)) else tuple(str(path) for path in paths)


@dataclass(frozen=True)
class Calibration:
    """Where the calibration tokens come from.

    Example: ``Calibration(text=["wiki.txt", "dialogue.jsonl"], samples=64)`` takes 32 samples of each.

    Attributes:
        text: .txt, .jsonl or .parquet files (field ``text``), one or several; with no source the shipped prose of
            several kinds.
        dataset: data sets of the Hub, ``name``, ``name:config`` or ``name:config:split``, one or several.
        tokens: a .npy file of integers, (sample, position), used exactly as it is; it stands alone.
        samples, length: how many samples of how many tokens (BOS counted); None: as ``setting`` says.
        seed: which parts of the texts are taken.
        bos: where the BOS token goes: ``first`` sample only, ``every``, ``none``; ``auto`` is ``every`` for models
            whose tokenizer adds one, else ``none``.
        mix: shares of the sources, in their order (texts, then data sets); None: equal ones.
        setting: ``default``, or ``shortened-llama`` (arXiv 2402.02834: 10 samples of 128 tokens).
        at_most: take fewer samples where the texts have no more.
    """

    text: Paths = option(
        "calibration text: .txt, .jsonl or .parquet; may be repeated, then mixed evenly; by default the shipped prose",
        None,
        kind=list,
        metavar="FILE",
    )
    dataset: Paths = option(
        "Hub data set: NAME, NAME:CONFIG or NAME:CONFIG:SPLIT; may be repeated", None, kind=list, metavar="NAME"
    )
    tokens: str | PathLike | None = option(
        "a .npy file of integers, (sample, position), used exactly as it is", None, kind=str, metavar="FILE"
    )
    samples: int | None = option(f"number of calibration samples; by default {SAMPLES}", None, metavar="N")
    length: int | None = option("tokens per sample, BOS counted; by default 128", None, metavar="N")
    seed: int = option("which parts of the texts are taken; also seeds methods that draw", 1234, metavar="N")
    bos: str = option(" | ".join(BOS_RULES), "auto", metavar="RULE")
    mix: str | Sequence[float] | None = option(
        "shares of the sources, such as 2,1,1; by default equal", None, kind=str, metavar="SHARES"
    )
    setting: str = option(
        f"how much text where it is not said: {' | '.join(NAMED)}", "default", flag="--calibration", metavar="NAME"
    )
    at_most: bool = False

    def __post_init__(self) -> None:
        if self.setting not in NAMED:
            raise UserError(f"allowed are {', '.join(NAMED)}", setting=self.setting)
        for name, value in zip(("samples", "length"), NAMED[self.setting], strict=True):
            if getattr(self, name) is None:
                set_field(self, name, value)
        if isinstance(self.mix, str):
            parts = [part for part in self.mix.replace(":", ",").split(",") if part.strip()]
            set_field(self, "mix", tuple(float(count_of(part, "mix", "2,1,1")) for part in parts))
        if self.tokens is not None and (self.text is not None or self.dataset is not None):
            raise UserError(
                f"give {argument('tokens')} alone, or texts and data sets: tokens are used exactly as they are"
            )
        check_numbers(samples=self.samples, length=self.length, bos=self.bos)
        if self.seed < 0:
            raise UserError("0 or more", seed=self.seed)
        if self.mix is not None:
            self._check_mix()

    def _check_mix(self) -> None:
        count = len(self.sources)
        if len(self.mix) != count or not all(math.isfinite(share) and share > 0 for share in self.mix):
            text = ",".join(f"{share:g}" for share in self.mix)
            raise UserError(
                f"one share above 0 for each of the {count} sources, in their order, such as 2,1,1", mix=text
            )

    @property
    def texts(self) -> tuple[str, ...]:
        return listed_paths(self.text)

    @property
    def datasets(self) -> tuple[str, ...]:
        return listed_paths(self.dataset)

    @property
    def sources(self) -> tuple[str, ...]:
        """The named sources, in order; none where the shipped prose is meant."""
        return self.texts + self.datasets

    @property
    def files(self) -> tuple[str, ...]:
        """The files that are read."""
        return self.texts + listed_paths(self.tokens)


def check_numbers(*, samples: int, length: int, bos: str) -> None:
    """Raise a UserError unless samples, length and the BOS rule make sense."""
    if samples < 1:
        raise UserError("at least 1 is needed", samples=samples)
    if length < 2:
        raise UserError("at least 2 tokens are needed, one to see and one to predict", length=length)
    if bos not in BOS_RULES:
        raise UserError(f"allowed are {', '.join(BOS_RULES)}", bos=bos)


def shares(total: int, weights: Sequence[float]) -> list[int]:
    """Whole parts of a total in these proportions, the first ones larger where it does not divide evenly.

    Each at least 1 if it can be.
    """
    whole = sum(weights)
    parts = []
    left, rest = total, float(whole)
    for weight in weights:
        part = min(left, max(1 if left > 0 else 0, math.ceil(left * weight / rest - 1e-9)))
        parts.append(part)
        left, rest = left - part, rest - weight
    return parts


def calibration_of(value: object) -> "Calibration | None":
    """A calibration from what a Python caller gave: a Calibration, a file or several, a mapping, or nothing.

    Raises:
        UserError: anything else.
    """
    if value is None or isinstance(value, Calibration):
        return value
    if isinstance(value, dict):
        return Calibration(**value)
    if isinstance(value, (str, PathLike, list, tuple)):
        return Calibration(text=value)
    raise UserError(f"calibration={value!r}: give Calibration(...), or a text file or several")

"""What is measured of speed: protocols by name, and the grid of batches and lengths.

``default`` ends within two minutes for two models of 135 million parameters on two cores. ``shortened-llama`` is the protocol
of Shortened LLaMA (arXiv 2402.02834): one prompt of 12 tokens repeated to the batch size, 128 and 512 new tokens, batches up
to 256, 30 runs of which the first 10 are dropped, latency as the mean, throughput = batch * new / latency. The paper samples;
here the largest logit is fed back.
"""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UserError

CACHES = ("dynamic", "static")
DEFAULT: dict[str, Any] = {"batches": (1, 4), "prompts": (128,), "new": (32,), "repeats": 20, "warmup": 1, "seconds": 75.0}
SHORTENED: dict[str, Any] = {
    "batches": tuple(2**power for power in range(9)),
    "prompts": (12,),
    "new": (128, 512),
    "repeats": 20,
    "warmup": 10,
    "repeated": True,
    "typical": "mean",
}
PROTOCOLS = {"default": DEFAULT, "shortened-llama": SHORTENED}


@dataclass(frozen=True)
class Grid:
    """What is measured: every batch with every prompt length and number of new tokens.

    Attributes:
        repeats: runs that are kept, after ``warmup`` runs that are not.
        cache: dynamic (as the model makes it) or static (room for all positions from the start).
        compiled: steps through torch.compile, on CUDA as CUDA graphs; needs the static cache.
        seconds: for the whole grid, shared out among the settings; then at least 3 runs of each are kept. None: no limit.
        repeated: all rows are the same prompt.
        typical: median or mean, what throughput and the share of the bandwidth are computed from.
    """

    protocol: str
    batches: tuple[int, ...]
    prompts: tuple[int, ...]
    new: tuple[int, ...]
    repeats: int
    warmup: int
    cache: str = "dynamic"
    compiled: bool = False
    seconds: float | None = None
    repeated: bool = False
    typical: str = "median"

    def __post_init__(self) -> None:
        for option, values, least in (("--batch", self.batches, 1), ("--prompt", self.prompts, 1), ("--new", self.new, 2)):
            if not values or min(values) < least:
                why = " (the prefill makes the first; decoding needs one more)" if least == 2 else ""
                raise UserError(f"{option} {','.join(map(str, values))}: numbers of {least} or more are needed{why}")
        if self.repeats < 1 or self.warmup < 0:
            raise UserError(f"--repeats {self.repeats} --warmup {self.warmup}: at least 1 run is kept, and 0 or more are dropped")
        if self.cache not in CACHES:
            raise UserError(f"--cache {self.cache}: give {' or '.join(CACHES)}")
        if self.compiled and self.cache != "static":
            raise UserError("--compile goes with --cache static: a growing cache changes its shape with every token")

    @staticmethod
    def of(protocol: str = "default", **changes: Any) -> "Grid":
        """A protocol by name, with changes; None changes nothing. A number of repeats lifts the limit of seconds."""
        if protocol not in PROTOCOLS:
            raise UserError(f"--protocol {protocol}: give {' or '.join(PROTOCOLS)}")
        given = {key: value for key, value in changes.items() if value is not None}
        if "repeats" in given:
            given = {"seconds": None, **given}
        return Grid(protocol, **PROTOCOLS[protocol] | given)

    @property
    def settings(self) -> list[tuple[int, int, int]]:
        """(batch, prompt, new), the batches in rising order."""
        return [(batch, prompt, new) for new, prompt in itertools.product(self.new, self.prompts) for batch in sorted(set(self.batches))]

    def described(self) -> dict[str, Any]:
        """For the record."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items() if key != "protocol"}


def counts(option: str, text: str | None) -> tuple[int, ...] | None:
    """Numbers with commas between them, such as 1,4,16; None stays None."""
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UserError(f"{option} {text}: write numbers with commas between them, such as 1,4,16")
    return tuple(map(int, parts))

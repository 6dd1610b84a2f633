"""Speed settings: protocols by name, and the grid of batches and lengths.

``default`` ends within two minutes for two models of 135 million parameters on two cores. ``shortened-llama`` is the
protocol of Shortened LLaMA (arXiv 2402.02834): one prompt of 12 tokens repeated to the batch size, 128 and 512 new
tokens, batches up to 256, 30 runs of which the first 10 are dropped, latency as the mean, throughput = batch * new /
latency. The paper samples; here the largest logit is fed back.
"""

import itertools
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UserError, argument
from .fields import option, set_field
from .quantities import numbers_of

GROUP = "Measuring"
CACHES = ("dynamic", "static")
DEFAULT: dict[str, Any] = {
    "batches": (1, 4),
    "prompts": (128,),
    "new": (32,),
    "repeats": 20,
    "warmup": 1,
    "seconds": 75.0,
}
SHORTENED: dict[str, Any] = {
    "batches": tuple(2**power for power in range(9)),
    "prompts": (12,),
    "new": (128, 512),
    "repeats": 20,
    "warmup": 10,
    "repeated": True,
    "typical": "mean",
}
SPEED_PROTOCOLS = {"default": DEFAULT, "shortened-llama": SHORTENED}


Numbers = tuple[int, ...] | list[int] | int | str | None


@dataclass(frozen=True)
class Grid:
    """What is measured: every batch with every prompt length and number of new tokens.

    What is not said is as the protocol has it.

    Example: ``Grid(batches=[1, 8], new=64)``. A number of repeats lifts the protocol's limit of seconds.

    Attributes:
        repeats: runs that are kept, after ``warmup`` runs that are not.
        cache: dynamic (as the model makes it) or static (room for all positions from the start).
        compiled: steps through torch.compile, on CUDA as CUDA graphs; needs the static cache.
        seconds: for the whole grid, shared out among the settings; then at least 3 runs of each are kept. None: no
            limit.
        repeated: all rows are the same prompt.
        typical: median or mean, what throughput and the share of the bandwidth are computed from.
    """

    protocol: str = option(" | ".join(SPEED_PROTOCOLS), "default", metavar="NAME")
    batches: Numbers = option(
        "batch sizes, such as 1,4; by default the protocol's", None, flag="--batch", kind=str, metavar="NUMBERS"
    )
    prompts: Numbers = option(
        "prompt lengths in tokens, such as 128,1024", None, flag="--prompt", kind=str, metavar="NUMBERS"
    )
    new: Numbers = option("tokens to make, exactly, such as 32,128", None, kind=str, metavar="NUMBERS")
    repeats: int | None = option("runs kept per setting; lifts the default's limit of time", None, metavar="N")
    warmup: int | None = option("runs dropped before them", None, metavar="N")
    cache: str = option(" | ".join(CACHES), "dynamic", metavar="KIND")
    compiled: bool = option("torch.compile the steps (CUDA graphs); with --cache static", False, flag="--compile")
    seconds: float | None = None
    repeated: bool = False
    typical: str = "median"

    def __post_init__(self) -> None:
        if self.protocol not in SPEED_PROTOCOLS:
            raise UserError(f"give {' or '.join(SPEED_PROTOCOLS)}", protocol=self.protocol)
        defaults = SPEED_PROTOCOLS[self.protocol]
        default_limit = self.seconds is None and self.repeats is None
        for name, value in defaults.items():
            from_protocol = name in ("repeated", "typical") or getattr(self, name) is None
            if from_protocol and (name != "seconds" or default_limit):
                set_field(self, name, value)
        for name, least in (("batches", 1), ("prompts", 1), ("new", 2)):
            values = numbers_of(getattr(self, name), name, "numbers")
            set_field(self, name, values)
            if not values or min(values) < least:
                why = " (the prefill makes the first; decoding needs one more)" if least == 2 else ""
                raise UserError(f"numbers of {least} or more are needed{why}", **{name: ",".join(map(str, values))})
        if self.repeats < 1 or self.warmup < 0:
            raise UserError(
                "at least 1 run is kept, and 0 or more are dropped", repeats=self.repeats, warmup=self.warmup
            )
        if self.cache not in CACHES:
            raise UserError(f"give {' or '.join(CACHES)}", cache=self.cache)
        if self.compiled and self.cache != "static":
            goes = f"{argument('compiled', True)} goes with {argument('cache', 'static')}"
            raise UserError(f"{goes}: a growing cache changes its shape with every token")

    @staticmethod
    def of(protocol: str = "default", **changes: Any) -> "Grid":
        """A protocol by name, with changes; None changes nothing."""
        return Grid(protocol, **{key: value for key, value in changes.items() if value is not None})

    @property
    def settings(self) -> list[tuple[int, int, int]]:
        """(batch, prompt, new), the batches in rising order."""
        return [
            (batch, prompt, new)
            for new, prompt in itertools.product(self.new, self.prompts)
            for batch in sorted(set(self.batches))
        ]

    def as_record(self) -> dict[str, Any]:
        """For the record."""
        return {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in asdict(self).items()
            if key != "protocol"
        }

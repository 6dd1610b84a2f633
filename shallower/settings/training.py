"""Training settings: how to train, where it is not as the method's recipe says."""

import math
from dataclasses import dataclass
from os import PathLike

from ..errors import UserError, argument
from .calibration import Paths, listed_paths
from .fields import option, set_field
from .quantities import tokens_of

GROUP = "Training"
EVAL_TOKENS = 20_000


@dataclass(frozen=True)
class Training:
    """How to train, where it is not as the method's recipe says.

    Attributes:
        length: tokens per sequence.
        seed: the order of the data, dropout and the adapters' start.
        batch_tokens: tokens of the global batch; None: the recipe's, or less where the budget is small.
        micro_batch: sequences run through the model at once; None follows from the device.
        lr: peak learning rate; None: the recipe's.
        checkpoint_steps: a checkpoint after so many steps; one is written every ``checkpoint_minutes`` in any case.
        resume: go on from the checkpoint that an interrupted run to the same output left.
        eval_texts: files whose perplexity is measured before, after, and every ``eval_steps`` (None: ten times in all).
        eval_tokens: how much of the start of each.
        gradient_checkpointing: compute each layer twice rather than keep what is inside it.
        control: train the dense model on the same tokens too, and tell its perplexities beside.
        keep_optimizer: leave what the optimiser keeps in the output, for a training that goes on.
        optimizer_from: a folder in which it was left; it may be of this model before layers were removed.
        shard: split the model among the processes (FSDP2) rather than hold it whole in each.
        track: where the figures go besides: a tracker that accelerate knows, such as tensorboard, trackio or wandb.
    """

    length: int = option("tokens per sequence", 512, metavar="N")
    seed: int = option("the order of the data, dropout and the adapters' start", 1234, metavar="N")
    batch_tokens: int | str | None = option(
        "tokens of the global batch; by default the method's, or less where the budget is small",
        None,
        kind=str,
        metavar="COUNT",
    )
    micro_batch: int | None = option("sequences run through the model at once; by default by device", None, metavar="N")
    lr: float | None = option("peak learning rate; by default the method's", None, metavar="RATE")
    checkpoint_steps: int | None = option("keep a checkpoint every so many steps", None, metavar="N")
    checkpoint_minutes: float = option("and one every so many minutes", 10.0, metavar="N")
    resume: bool = option("go on from the last checkpoint of an interrupted run, if there is one", False)
    eval_texts: Paths = option(
        "text to measure perplexity on before, meanwhile and after; may be repeated",
        (),
        flag="--eval-text",
        kind=list,
        metavar="FILE",
    )
    eval_steps: int | None = option("measure every so many steps; by default ten times in all", None, metavar="N")
    eval_tokens: int | str | None = option(
        "use only the start of each text to measure on", EVAL_TOKENS, flag="--max-tokens", kind=str, metavar="COUNT"
    )
    gradient_checkpointing: bool = option("less memory: each layer is computed twice", False)
    control: bool = option("train the dense model on the same tokens too, to see what the text gives", False)
    keep_optimizer: bool = option("leave the optimiser's state in the output", False)
    optimizer_from: str | PathLike | None = option(
        "a healed folder with the optimiser's state to begin with, also of before layers were removed",
        None,
        kind=str,
        metavar="DIR",
    )
    shard: bool = option("split the model among the processes (FSDP2) rather than hold it in each", False)
    track: str | None = option(
        "also send the figures to tensorboard, trackio, wandb or another tracker", None, metavar="NAME"
    )

    def __post_init__(self) -> None:
        set_field(self, "eval_texts", listed_paths(self.eval_texts))
        if isinstance(self.batch_tokens, str):
            set_field(self, "batch_tokens", tokens_of(self.batch_tokens, "batch_tokens"))
        if isinstance(self.eval_tokens, str):
            set_field(self, "eval_tokens", tokens_of(self.eval_tokens, "eval_tokens"))
        for name in ("batch_tokens", "micro_batch", "checkpoint_steps", "eval_steps"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise UserError("1 or more", **{name: getattr(self, name)})
        if self.length < 8:
            raise UserError("at least 8 tokens are needed", length=self.length)
        if self.batch_tokens is not None and self.batch_tokens < self.length:
            raise UserError(
                f"at least one sequence of {argument('length', self.length)} is needed", batch_tokens=self.batch_tokens
            )
        if self.lr is not None and not 0 < self.lr < math.inf:
            raise UserError("a number above 0, such as 1e-4", lr=self.lr)
        if self.seed < 0:
            raise UserError("0 or more", seed=self.seed)

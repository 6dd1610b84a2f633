"""Writing settings: how a pruned model is written and proven."""

from dataclasses import dataclass

from ..errors import UserError
from .compute import check_dtype
from .fields import option
from .quantities import bytes_of

GROUP = "Writing"
FORMATS = ("auto", "plain", "custom", "deci")


@dataclass(frozen=True)
class Writing:
    """How a pruned model is written.

    Attributes:
        overwrite: replace what was written there before.
        verify: reload what was written and prove it.
        save_dtype: store floating tensors in fp32, bf16 or fp16; None keeps each one's own.
        max_shard_size: largest weight file.
        format: where parts of layers go, ``plain`` writes a class that transformers has, or refuses; ``custom`` writes
            the family's own with code beside the weights; ``deci`` a DeciLM, for vLLM, SGLang, llama.cpp and mlx-lm;
            ``auto`` is plain. Whole layers are plain always.
    """

    overwrite: bool = option("replace an older output in --out", False)
    verify: bool = option("reload what was written and prove it", True, flag="--verify/--no-verify")
    save_dtype: str | None = option(
        "store floating tensors in fp32, bf16 or fp16; by default as they were", None, metavar="DTYPE"
    )
    max_shard_size: int | str = option("largest weight file", "5GB", kind=str, metavar="SIZE")
    format: str = option(
        "where parts of layers go: plain (a class of transformers, or refused), custom (code in the folder, which "
        "needs trust_remote_code elsewhere), deci (DeciLM, for vLLM, SGLang, llama.cpp and mlx-lm), or auto, which is "
        "plain and names the others where that is refused",
        "auto",
        metavar="FORMAT",
    )

    def __post_init__(self) -> None:
        check_dtype(self.save_dtype)
        bytes_of(self.max_shard_size, "max_shard_size")
        if self.format not in FORMATS:
            raise UserError(f"unknown; allowed are {', '.join(FORMATS)}", format=self.format)

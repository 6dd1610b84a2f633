"""Export settings: into which format, in which type of numbers, by which converter."""

from dataclasses import dataclass
from os import PathLike

from ..errors import UserError
from ..storage.paths import place
from .fields import option, set_field

GROUP = "Export"
FORMATS = ("gguf",)
TYPES = ("f32", "f16", "bf16", "q8_0")  # that the converter writes by itself
# that llama.cpp's quantiser makes of an f16 file
FEWER_BITS = ("q2_k", "q3_k_s", "q3_k_m", "q3_k_l", "q4_k_s", "q4_k_m", "q5_k_s", "q5_k_m", "q6_k", "iq4_nl", "iq4_xs")
DEFAULT_TYPE = "f16"


@dataclass(frozen=True)
class ExportSettings:
    """How a model is exported.

    Attributes:
        to: the format.
        type: of the numbers in the file, f16 where it is converted (types of fewer bits need llama-quantize); with
            ``like``, of the tensors that changed (None: as they were where that can be written, else q8_0).
        like: the .gguf file that the model was made of: what did not change is copied from it, and no converter runs.
        llama_cpp: folder of llama.cpp's sources, for its converter; None: $LLAMA_CPP_ROOT.
        verify: prove the file against transformers, in llama.cpp (xllamacpp).
    """

    to: str = option(f"format: {' | '.join(FORMATS)}", "gguf", metavar="FORMAT")
    type: str | None = option(
        f"numbers in the file: {' | '.join(TYPES)}, q4_k_m and others [{DEFAULT_TYPE}; of a copy as they were]",
        None,
        metavar="TYPE",
    )
    like: str | PathLike | None = option(
        "the .gguf file that the model was made of: weights that did not change are copied from it",
        None,
        kind=str,
        metavar="FILE",
    )
    llama_cpp: str | PathLike | None = option(
        "folder of llama.cpp's sources, whose converter is run; by default $LLAMA_CPP_ROOT",
        None,
        kind=str,
        metavar="ROOT",
    )
    verify: bool = option("prove the file in llama.cpp against transformers", True, flag="--verify/--no-verify")
    overwrite: bool = option("replace a file that an earlier export wrote", False)

    def __post_init__(self) -> None:
        if self.to not in FORMATS:
            raise UserError(f"allowed are {', '.join(FORMATS)}", to=self.to)
        if self.type is not None:
            set_field(self, "type", self.type.lower())
            if self.type not in TYPES and self.like is not None:
                raise UserError(f"what changed is rounded here: allowed are {', '.join(TYPES)}", type=self.type)
            if self.type not in TYPES + FEWER_BITS:
                raise UserError(
                    f"allowed are {', '.join(TYPES)}, and with llama.cpp's quantiser {', '.join(FEWER_BITS)}",
                    type=self.type,
                )
        if self.like is not None:
            if self.llama_cpp is not None:
                raise UserError("what is copied is not converted: leave one of the two out", like=self.like)
            set_field(self, "like", place(self.like))
        if self.llama_cpp is not None:
            set_field(self, "llama_cpp", place(self.llama_cpp))

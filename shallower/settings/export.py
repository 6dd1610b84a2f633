"""Export settings: into which format, in which type of numbers, by which converter."""

from dataclasses import dataclass
from os import PathLike

from ..errors import UserError
from ..storage.paths import place
from .fields import option, set_field

GROUP = "Export"
FORMATS = ("gguf",)
TYPES = ("f32", "f16", "bf16", "q8_0")  # that the converter writes by itself


@dataclass(frozen=True)
class ExportSettings:
    """How a model is exported.

    Attributes:
        to: the format.
        type: of the numbers in the file.
        llama_cpp: folder of llama.cpp's sources, for its converter; None: $LLAMA_CPP_ROOT.
        verify: prove the file against transformers, in llama.cpp (xllamacpp).
    """

    to: str = option(f"format: {' | '.join(FORMATS)}", "gguf", metavar="FORMAT")
    type: str = option(f"numbers in the file: {' | '.join(TYPES)}", "f16", metavar="TYPE")
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
        if self.type.lower() not in TYPES:
            hint = ""
            if "_k" in self.type.lower() or self.type.lower().startswith("iq"):
                hint = "; K types need a quantiser: export f16 and run llama-quantize on the file"
            raise UserError(f"allowed are {', '.join(TYPES)}{hint}", type=self.type)
        set_field(self, "type", self.type.lower())
        if self.llama_cpp is not None:
            set_field(self, "llama_cpp", place(self.llama_cpp))

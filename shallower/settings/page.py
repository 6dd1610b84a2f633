"""Page settings: where the page to try models on is served, and how long answers are."""

from dataclasses import dataclass

from ..errors import UserError
from .fields import option

GROUP = "Page"
PORTS = 65535


@dataclass(frozen=True)
class PageSettings:
    """Where the page is served: on this machine alone.

    Attributes:
        port: 0 takes any free one.
        open: show it in the browser.
        answer_tokens: longest answer that may be asked for.
    """

    port: int = option("port of 127.0.0.1; 0: any that is free", 7860, metavar="N")
    open: bool = option("also open it in the browser", False)
    answer_tokens: int = option("longest answer that may be asked for", 256, metavar="N")

    def __post_init__(self) -> None:
        if not 0 <= self.port <= PORTS:
            raise UserError(f"a port, 0 to {PORTS}", port=self.port)
        if self.answer_tokens < 1:
            raise UserError("1 token or more", answer_tokens=self.answer_tokens)

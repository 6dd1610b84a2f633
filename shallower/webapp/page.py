"""Page on which an unpruned and a pruned model answer one prompt in turns, side by side."""

import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from ..anatomy.generation import end_tokens
from ..anatomy.model import Model
from ..artifacts import Removal
from ..data.packing import check_known
from ..data.prompts import asked_by
from ..errors import UserError
from ..evaluation.side_by_side import DENSE, Answerer, Variant, in_turns, keeps_cache, opinions
from ..runtime.format import byte_count, duration
from ..stages.variants import Offer
from . import looks

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
SHOWN_EVERY = 0.1  # seconds between two pictures of what has been written
EXAMPLES = (
    "Explain in three sentences why the sky is blue.",
    "Write a short story about a lighthouse keeper who finds a message in a bottle.",
    "What is 17 times 23? Think step by step.",
)
FONTS = ("system-ui", "sans-serif")


@dataclass
class ShownAnswer:
    """An answer as it is shown."""

    answerer: Answerer
    pieces: list[str] = field(default_factory=list)
    _text: str = ""

    def grow(self, tokenizer: Any) -> None:
        """Take in what has been written since; half a character waits for its other half."""
        while len(self.pieces) < len(self.answerer.tokens):
            text = tokenizer.decode(self.answerer.tokens[: len(self.pieces) + 1], skip_special_tokens=True)
            whole = text.rstrip("\ufffd")
            self.pieces.append(whole[len(self._text) :] if whole.startswith(self._text) else "")
            self._text = whole if whole.startswith(self._text) else self._text


class Page:
    """What the page does; only one question is answered at a time.

    Args:
        model: loaded; all variants run within it.
    """

    def __init__(self, model: Model, offers: list[Offer], longest: int):
        self.model, self.offers, self.longest = model, {one.name: one for one in offers}, longest
        self.ends = end_tokens(model.module, model.tokenizer)
        self.chat = bool(getattr(model.tokenizer, "chat_template", None))
        self.width = model.module.dtype.itemsize
        self.cached: dict[Removal, bool] = {}  # whether decoding with a cache is right without these
        self.keeps(DENSE)
        self.lock = Lock()

    def place(self, name: str, index: float) -> tuple[Offer, int]:
        """(what is offered by that name, a place among its removals)."""
        offer = self.offers[name]
        return offer, max(0, min(int(index), len(offer.removals) - 1))

    def keeps(self, variant: Variant) -> bool:
        """Whether a variant decodes with a cache; tried once per removal."""
        if variant.removal not in self.cached:
            self.cached[variant.removal] = keeps_cache(self.model, variant)
        return self.cached[variant.removal]

    def warm(self) -> str:
        """Do once what only the first answer of a thread takes time for; a remark, which is empty."""
        with self.lock:
            asked = asked_by(EXAMPLES[0], self.model.tokenizer, chat=self.chat)
            Answerer(self.model, DENSE, asked, self.ends).step()
        return ""

    def drawn(self, name: str, index: float) -> tuple[str, str]:
        """(the stack, what goes in words)."""
        offer, index = self.place(name, index)
        removal, before = offer.removals[index], offer.plan.params_before
        gone = offer.gone[index]
        words = f"without {removal.words}: {gone / before:.1%} of the parameters" if removal else "nothing is left out"
        return looks.stack(offer.plan, removal), looks.figures([("pruned", words)])

    def answers(
        self, prompt: str, name: str, index: float, repaired: bool, chat: bool, longest: float
    ) -> Iterator[tuple[str, str, str, str, str]]:
        """(both answers, the figures under each, a remark), again and again while they are written."""
        while not self.lock.acquire(timeout=1):  # what was stopped ends with the step that it is in
            remark = looks.figures([("wait", "what was asked before is being ended")])
            yield looks.waiting("…"), looks.waiting("…"), "", "", remark
        try:
            yield from self._answers(prompt, self.place(name, index), repaired, chat, int(longest))
        finally:
            self.lock.release()

    def _answers(
        self, prompt: str, chosen: tuple[Offer, int], repaired: bool, chat: bool, longest: int
    ) -> Iterator[tuple[str, str, str, str, str]]:
        offer, index = chosen
        if not prompt.strip():
            raise UserError("write a prompt first")
        asked = asked_by(prompt, self.model.tokenizer, chat=chat)
        self._check(asked, longest)
        if repaired and offer.variant is None and index not in offer.repaired:
            text = looks.figures([("once", "the repair of what is left is made; a minute or more")])
            yield looks.waiting("…"), looks.waiting("…"), "", "", text
            offer.repair(self.model, index)
        variant = offer.at(index, repaired=repaired)
        answerers = [Answerer(self.model, one, asked, self.ends, self.keeps) for one in (DENSE, variant)]
        sides = [ShownAnswer(answerer) for answerer in answerers]
        sizes = [offer.plan.params_before, offer.plan.params_before - offer.gone[index]]
        shown = 0.0
        for _ in in_turns(answerers, longest):
            if time.monotonic() - shown >= SHOWN_EVERY:
                shown = time.monotonic()
                yield self._picture(sides, sizes, variant, ())
        yield self._picture(sides, sizes, variant, ())
        said = [
            opinions(self.model, judge, asked, side.answerer.tokens)
            for judge, side in zip((variant, DENSE), sides, strict=True)
        ]
        yield self._picture(sides, sizes, variant, said)

    def _check(self, asked: list[int], longest: int) -> None:
        """Raise a UserError for a prompt that the model cannot read, or has no room for with its answer."""
        if not asked:
            raise UserError("the tokenizer makes no token of that prompt: write another one")
        check_known(max(asked), self.model.vocabulary, "the prompt")
        known = self.model.checkpoint.positions
        if known is not None and len(asked) + longest > known:
            raise UserError(
                f"the prompt has {len(asked)} tokens and the answer may have {longest}, and the model knows {known} "
                "positions: shorten one of them"
            )

    def _picture(
        self, sides: list[ShownAnswer], sizes: list[int], variant: Variant, said: Any
    ) -> tuple[str, str, str, str, str]:
        names = ("the pruned model", "the unpruned model")  # each is judged by the other one
        texts, under = [], []
        for place, side in enumerate(sides):
            side.grow(self.model.tokenizer)
            own = said[place] if said else []
            words = [self.model.tokenizer.decode([one.likeliest]) for one in own]
            texts.append(looks.answer(side.pieces, side.answerer.tokens, own, names[place], words))
            figures = looks.figures(self._figures(side.answerer, sizes[place], variant if place else DENSE))
            under.append(figures + looks.agreement(own, side.answerer.tokens, names[place]))
        return texts[0], texts[1], under[0], under[1], ""

    def _figures(self, answerer: Answerer, parameters: int, variant: Variant) -> list[tuple[str, str]]:
        found = [("parameters", looks.size(parameters, self.width))]
        if variant.removal.narrows:  # groups are masked, and take their time and their place in the cache
            found.append(("tokens/s, cache", "see the written model: here what goes is masked"))
        else:
            if answerer.rate is not None:
                found.append(("tokens/s", f"{answerer.rate:.1f}"))
            if answerer.seconds:
                first = answerer.seconds[0]
                found.append(("first after", duration(first) if first >= 10 else f"{first:.2f} s"))
            cache = byte_count(answerer.decoder.cached_bytes) if answerer.cached else "none: all is read again"
            found.append(("cache", cache))
        found.append(("tokens", str(len(answerer.tokens))))
        if variant.weights:
            found.append(("weights of its own here", byte_count(variant.bytes)))
        return found

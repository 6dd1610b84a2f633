"""Looks of the page: tokens in colour, figures under an answer, the stack with what is gone, the style."""

import html
from collections.abc import Sequence
from pathlib import Path

from ..artifacts import Plan, Removal
from ..evaluation.side_by_side import LIKELY, Opinion
from ..reporting.canvas import PALETTE, palette_css
from ..reporting.figures import stack_figure
from ..runtime.format import byte_count, millions

STYLE = Path(__file__).with_name("style.css")
CLASSES = {"same": "", "likely": "likely", "other": "other"}


def style() -> str:
    """The colours of our drawings, for light and for gradio's dark class, and the style of the page."""
    light, dark = ("".join(f"--{name}:{pair[side]};" for name, pair in PALETTE.items()) for side in (0, 1))
    return f"{palette_css()}\n:root{{{light}}}\n.dark{{{dark}}}\n{STYLE.read_text(encoding='utf-8')}"


def judged(opinion: Opinion, token: int) -> str:
    """How the other model finds a token: the same that it would write, likely, or another one."""
    return "same" if token == opinion.likeliest else "likely" if opinion.likely else "other"


def answer(
    pieces: Sequence[str], tokens: Sequence[int], said: Sequence[Opinion], name: str, words: Sequence[str]
) -> str:
    """An answer as HTML, every token in the colour of what the other model thinks of it.

    Args:
        said: opinions on the first tokens; those without any have no colour.
        name: of the model whose opinions they are.
        words: what that model would have written.
    """
    parts = []
    for place, piece in enumerate(pieces):
        if place >= len(said):
            parts.append(html.escape(piece))
            continue
        kind = judged(said[place], tokens[place])
        would = "" if kind == "same" else f", would write {words[place]!r}"
        hint = html.escape(f"{name}: {said[place].probability:.0%}{would}", quote=True)
        kind = f' class="{CLASSES[kind]}"' if CLASSES[kind] else ""
        parts.append(f'<span{kind} title="{hint}">{html.escape(piece)}</span>')
    return f'<div class="answer">{"".join(parts)}</div>'


def waiting(text: str) -> str:
    """What stands where an answer will be."""
    return f'<div class="answer"><span class="waits">{html.escape(text)}</span></div>'


def figures(items: Sequence[tuple[str, str]]) -> str:
    """Figures under an answer."""
    return (
        '<div class="figures">'
        + "".join(f"<span>{html.escape(name)} <b>{html.escape(value)}</b></span>" for name, value in items)
        + "</div>"
    )


def agreement(said: Sequence[Opinion], tokens: Sequence[int], name: str) -> str:
    """In words, how often another model would have written the same."""
    if not said:
        return ""
    kinds = [judged(one, token) for one, token in zip(said, tokens, strict=True)]
    share = {kind: kinds.count(kind) / len(kinds) for kind in CLASSES}
    likely = sample("likely", f"{share['likely']:.0%} it finds likely")
    other = sample("other", f"{share['other']:.0%} it does not")
    words = f"{html.escape(name)} would write the same at {share['same']:.0%} of the tokens; {likely}, {other}."
    return f'<div class="legend">{words}</div>'


def sample(kind: str, text: str) -> str:
    """Words in the colour of a kind of token."""
    return f'<span class="answer sample"><span class="{kind}">{html.escape(text)}</span></span>'


def legend() -> str:
    """What the colours mean."""
    likely, other = sample("likely", "likely"), sample("other", "another")
    words = (
        "Colours, once both have written: a token without colour is the one that the other model would have written; "
        f"{likely}: it finds it likely ({LIKELY:.0%} or more); {other}: it does not. Point at a token to see what it "
        "would have written."
    )
    return f'<div class="legend">{words}</div>'


def stack(plan: Plan, removal: Removal) -> str:
    """The stack as SVG, with the layers, halves and widths that are gone."""
    layers = plan.model.layers
    order = {layer: place for place, layer in enumerate(plan.order)} if not plan.units else {}
    drawing = stack_figure(
        "stack",
        f"The {layers} layers from the input down" + (f"; without {removal.words}" if removal else ""),
        removed={layer: order.get(layer) for layer in removal.layers},
        protected=[*range(plan.keep_first), *range(layers - plan.keep_last, layers)],
        scores=None,
        count=layers,
        parts=[unit for unit in removal.units if unit.part],
    )
    return f'<div class="stack">{drawing.svg()}</div>'


def size(parameters: int, width: int) -> str:
    """Parameters, and the bytes of their weights."""
    return f"{millions(parameters)}, {byte_count(parameters * width)}"

"""Layout of the page in gradio's blocks, and what each click does."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio

from ..errors import UserError
from . import looks
from .page import EXAMPLES, FONTS, Page


def layout(page: Page, title: str) -> gradio.Blocks:
    """The page; ``looks.style`` and ``theme`` go with it where it is mounted."""
    first = next(iter(page.offers.values()))
    with gradio.Blocks(title=f"shallower: {title}", analytics_enabled=False) as blocks:
        gradio.Markdown(
            f"## {title}, unpruned and pruned\nBoth write their likeliest tokens, in turns, so that neither slows the "
            "other down."
        )
        with gradio.Row():
            with gradio.Column(min_width=320, scale=3):
                prompt = gradio.Textbox(label="Prompt", lines=3, value=EXAMPLES[0], elem_id="prompt")
                examples = gradio.Dropdown(EXAMPLES, label="Examples", value=EXAMPLES[0])
                chat = gradio.Checkbox(page.chat, label="put as a question by the chat template")
                most = min(96, page.longest)
                longest = gradio.Slider(1, page.longest, most, step=1, label="Longest answer, in tokens")
            with gradio.Column(min_width=320, scale=2):
                offer, amount, repaired = removal(page)
                drawn, words = page.drawn(first.name, len(first.removals) // 2)
                gone = gradio.HTML(words, elem_id="gone")
        with gradio.Row():
            go = gradio.Button("Go", variant="primary", elem_id="go")
            stop = gradio.Button("Stop", elem_id="stop")
        remark = gradio.HTML(elem_id="remark")
        with gradio.Row():
            left, left_figures = side("Unpruned", "unpruned")
            right, right_figures = side("Pruned", "pruned")
        gradio.HTML(looks.legend())
        stack = gradio.HTML(drawn, elem_id="stack")

        shown = [left, right, left_figures, right_figures, remark]
        asked = [prompt, offer, amount, repaired, chat, longest]
        quick = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        long = {
            "show_progress": "hidden",
            "api_visibility": "private",
            "concurrency_limit": 1,
            "concurrency_id": "model",
        }
        running = [one(told(page.answers), asked, shown, **long) for one in (go.click, prompt.submit)]
        blocks.load(page.warm, None, remark, **long)  # what is done once only, before somebody waits for it
        stop.click(None, cancels=running, **quick)
        examples.change(lambda text: text, examples, prompt, **quick)
        amount.change(page.drawn, [offer, amount], [stack, gone], trigger_mode="always_last", **quick)
        offer.change(chosen(page), offer, [amount, repaired, stack, gone], **quick)
    return blocks


def removal(page: Page) -> tuple[gradio.Radio, gradio.Slider, gradio.Checkbox]:
    """What says which removal is looked at, and how much of it."""
    first = next(iter(page.offers.values()))
    plan, names, last = first.variant is None, [*page.offers], len(first.removals) - 1
    return (
        gradio.Radio(names, value=first.name, label="Removal", elem_id="offer", visible=len(names) > 1),
        gradio.Slider(
            *(0, max(1, last), len(first.removals) // 2),
            step=1,
            label="How much of it goes, in its order",
            elem_id="amount",
            visible=plan,
        ),
        gradio.Checkbox(False, label="repaired in closed form", elem_id="repaired", visible=plan),
    )


def side(title: str, name: str) -> tuple[gradio.HTML, gradio.HTML]:
    """A column with an answer, and the figures under it."""
    with gradio.Column(min_width=300):
        gradio.Markdown(f"### {title}")
        return gradio.HTML(looks.waiting("its answer"), elem_id=name), gradio.HTML(elem_id=f"{name}-figures")


def theme() -> Any:
    """Fonts of the system, nothing fetched."""
    return gradio.themes.Default(font=FONTS, font_mono=("ui-monospace", "monospace"))


def chosen(page: Page) -> Callable[[str], tuple[Any, ...]]:
    """What changes when another removal is chosen."""

    def show(name: str) -> tuple[Any, ...]:
        offer = page.offers[name]
        plan, count = offer.variant is None, len(offer.removals)
        place = count // 2 if plan else 0
        amount = gradio.update(maximum=max(1, count - 1), value=place, visible=plan)
        return amount, gradio.update(value=False, visible=plan), *page.drawn(name, place)

    return show


def told(answers: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same with mistakes of the user's told on the page."""

    def answering(*given: Any) -> Iterator[Any]:
        try:
            yield from answers(*given)
        except UserError as error:
            raise gradio.Error(str(error), print_exception=False) from error

    return answering

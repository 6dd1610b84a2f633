"""Written answers of a model, held against another one's, and the model as a draft of another one."""

from collections.abc import Callable
from functools import cached_property
from importlib import resources
from typing import Any

from .. import data
from ..anatomy.model import Model
from ..artifacts.removal import Removal
from ..data.prompts import Prompts, read_prompts
from ..data.readers import check_readable
from ..errors import UserError
from ..evaluation.agreement import Side, agreement
from ..evaluation.speculation import check_vocabularies, speculate
from ..runtime import distributed
from ..settings.compute import Compute
from ..settings.evaluation import Answers
from ..storage.journal import Journal
from ..walk.run import load_weights
from .common import open_to_run

DEFAULT_LENGTH = 4096  # tokens that a model reads whose files name no number of positions


class WrittenAnswers:
    """What is to be measured of a model's answers; what cannot be is refused when it is made.

    Raises:
        UserError: no such file, prompts without a field, another vocabulary, several processes, or a layered draft.
    """

    def __init__(self, model: Model, how: Answers, compute: Compute):
        self.model = model
        self.how = how
        self.compute = compute
        if not self:
            return
        if distributed.size() > 1:
            name, value = ("against", how.against) if how.against is not None else ("as_draft_of", how.as_draft_of)
            raise UserError("answers are written in one process: start it without torchrun", **{name: value})
        self.against = self._opened(how.against, shared=True)
        self.target = self._opened(how.as_draft_of)
        for other in (self.against, self.target):
            if other is not None:
                check_vocabularies(model, other)
        if self.target is not None and (model.layered or self.target.layered):
            raise UserError("both models have to be in memory at once: leave out layered", as_draft_of=how.as_draft_of)
        _ = self.prompts

    def __bool__(self) -> bool:
        return self.how.against is not None or self.how.as_draft_of is not None

    def _opened(self, given: Any, *, shared: bool = False) -> Model | None:
        """A model that was named; with ``shared`` the one that is measured, where it is that one again."""
        if given is None:
            return None
        other = open_to_run(given, self.compute)
        same = shared and other.record.fingerprint == self.model.record.fingerprint and other.dtype == self.model.dtype
        return self.model if same else other

    @cached_property
    def prompts(self) -> Prompts:
        """The prompts of both models, those that leave no room for an answer left out."""
        how, model = self.how, self.model
        if how.prompts is not None:
            check_readable([how.prompts], "prompts")
        positions = model.checkpoint.positions or DEFAULT_LENGTH
        room = positions - min(how.answer_tokens, positions // 2)
        with resources.as_file(resources.files(data).joinpath("prose", "prompts.jsonl")) as shipped:
            path = str(how.prompts or shipped)
            found = read_prompts([path], model.tokenizer, model.vocabulary, room=room, what="prompts")
        return found._replace(items=found.items[: how.max_prompts])

    def measured(self, removal: Removal, journal: Callable[..., Journal]) -> dict[str, Any]:
        """Fields of an evaluation: agreement and draft, as far as they are asked for.

        Args:
            removal: what is left out of the model virtually.
            journal: makes what keeps answers.
        """
        if not self:
            return {}
        own = Side(self.model, removal)
        found: dict[str, Any] = {}
        if self.against is not None:
            load_weights(self.against)
            about = {"answers": self.prompts.hash, "longest": self.how.answer_tokens}
            keeping = journal(**about, against=self.against.record.fingerprint)
            how = {"longest": self.how.answer_tokens, "journal": keeping}
            found["agreement"] = agreement(own, Side(self.against), self.prompts, **how)
        if self.target is not None:
            load_weights(self.target)
            how = {"longest": self.how.answer_tokens, "draft_tokens": self.how.draft_tokens}
            found["draft"] = speculate(own, self.target, self.prompts, **how)
        return found

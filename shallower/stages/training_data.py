"""Training data of a healing: files, a data set of the Hub, and prompts that the unpruned model answers."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ..anatomy.model import Model
from ..artifacts import OwnAnswers
from ..data.packing import Documents, Packed, packed_sequences, read_documents
from ..data.prompts import read_prompts
from ..data.readers import split_own, stream_rows
from ..data.streams import Stream
from ..errors import UserError, argument
from ..runtime.progress import say
from ..settings.answering import Answering
from ..settings.training import Training
from ..training.own_words import own_words
from ..training.questions import Questions


def check_answering(answering: Answering, *, asks: bool, teaches: bool) -> None:
    """Raise a UserError where something is set of answers, or of the unpruned model, that has no use.

    Args:
        asks: the unpruned model answers prompts.
        teaches: it is there at all, to answer, teach or be the control.
    """
    for field in fields(answering):
        if (teaches if field.name == "teacher" else asks) or getattr(answering, field.name) == field.default:
            continue
        what = f"the unpruned model answers no prompts here: give {argument('data', 'self:FILE')}, or leave it out"
        raise UserError(what, **{field.name: getattr(answering, field.name)})


@dataclass
class TrainingTexts:
    """What is trained on: read when this is made; ``answer`` asks the unpruned model, ``packed`` makes sequences.

    Attributes:
        documents: in memory, of files or of a data set of examples.
        dataset: a data set of text, which is read on the way.
        questions: what the unpruned model is asked.
        answers: what is to be told of its answers.
    """

    documents: list[Documents]
    dataset: str | None
    questions: Questions | None
    answers: OwnAnswers | None = None

    def answer(self, folder: Path, device: str, length: int) -> None:
        """Have the prompts answered, or take the answers that lie in the folder."""
        if self.questions:
            examples, self.answers = own_words(self.questions, folder, device, length)
            self.documents.append(examples)

    def packed(self, model: Model, training: Training, *, isolated: bool) -> Packed | Stream:
        """Sequences to train on."""
        how = {"length": training.length, "seed": training.seed, "isolated": isolated}
        if self.dataset:
            return Stream(self.dataset, model.tokenizer, model.vocabulary, **how)
        return packed_sequences(self.documents, **how, answers=self.answers)


def read_texts(
    model: Model,
    given: tuple[Sequence[str | Path], str | None],
    teacher: Model | None,
    budget: int,
    training: Training,
    answering: Answering,
) -> TrainingTexts:
    """What is trained on, read and checked.

    Args:
        given: files and files of prompts, and a data set of the Hub.
        teacher: the unpruned model, where there are prompts for it.
        budget: tokens to train on.
    Raises:
        UserError: as ``data.packing.read_documents`` and ``data.prompts.read_prompts``; a data set of text beside
            prompts.
    """
    files, asked = split_own(given[0])
    dataset = given[1]
    questions = None
    if asked:
        prompts = read_prompts(asked, model.tokenizer, model.vocabulary, room=training.length)
        if prompts.long:
            say(f"{prompts.long} prompts of {training.length} tokens or more leave no room for an answer: left out")
        names = [Path(path).name for path in asked]
        questions = Questions(teacher, model.tokenizer, prompts, names, answering, training.seed, budget)
    if dataset and not files and "text" in next(stream_rows(dataset), ("", {}))[1]:
        if asked:
            raise UserError(
                f"text that is read on the way does not go with {argument('data', 'self:FILE')}: give it as a file",
                dataset=dataset,
            )
        return TrainingTexts([], dataset, None)
    documents = []
    if files or dataset or not asked:
        how = {"dataset": dataset, "most": budget, "seed": training.seed}
        documents = [read_documents(files, model.tokenizer, model.vocabulary, **how)]
    return TrainingTexts(documents, None, questions)

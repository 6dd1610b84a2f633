"""The command line: typer over ``stages``. Results go to stdout, progress and errors to stderr, mistakes exit with 2."""

import os
import sys

import typer

from . import measuring, methods, ranks, verbs
from .anatomy.loading import quiet
from .errors import UserError
from .options import COMPENSATIONS, CRITERIA, HEALINGS, SELECTIONS
from .progress import aside, shown
from .provenance import versions

app = typer.Typer(
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    help="Make decoder language models shallower: score, plan, prune, prove, evaluate.\n\n"
    "MODEL is a folder, a Hub id or a .gguf file. VERB --help NAME explains a method; --version says which one this is.",
)

INTERRUPTED = 130
TOGETHER = ("score", "plan", "heal")  # the verbs that many processes can share
OF_VERB = {"compensate": "compensation", "heal": "healing"}  # whose methods are meant first
UsageError = typer.BadParameter.__mro__[2]  # click's base class, wherever this typer keeps its click

for verb in (
    verbs.inspect,
    verbs.score,
    verbs.plan,
    verbs.prune,
    verbs.compensate,
    verbs.heal,
    measuring.evaluate,
    measuring.sweep,
    measuring.bench,
    measuring.compare,
    measuring.report,
    measuring.card,
    measuring.demo,
):
    app.command()(aside()(verb))


def _explain(arguments: list[str]) -> bool:
    """``VERB --help NAME``: print what the method NAME does and its settings; a name may be that of two methods."""
    if len(arguments) == 3 and arguments[1] in ("--help", "-h"):
        for kind in sorted(methods.KINDS, key=lambda kind: OF_VERB.get(arguments[0], "criteria") != kind):
            if arguments[2] in methods.names(kind):
                print(f"{methods.KINDS[kind]} {arguments[2]}\n\n{methods.describe(methods.find(kind, arguments[2]))}")
                return True
        raise UserError(
            f"unknown method {arguments[2]!r}: criteria are {CRITERIA}; selections are {SELECTIONS}; "
            f"compensations are {COMPENSATIONS}; healings are {HEALINGS}"
        )
    return False


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 a mistake of the user's, 130 interrupted."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "LOCAL_RANK" in os.environ and arguments and arguments[0].startswith("--local_rank="):
        arguments = arguments[1:]  # DeepSpeed's launcher puts it first; the environment tells the same
    arguments = arguments or ["--help"]
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a formula must not fail on a terminal that knows only ASCII
    try:
        if _run(arguments) == INTERRUPTED:
            raise KeyboardInterrupt
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone, as head does
    except (UserError, UsageError) as error:
        text = error.format_message() if isinstance(error, UsageError) else str(error)
        print("error:", " ".join(text.split()) or "see --help", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort):
        print("interrupted: nothing was left half-written; run the same command again", file=sys.stderr)
        sys.exit(INTERRUPTED)


def _run(arguments: list[str]) -> int | None:
    """Run one command; typer reports an interruption as a status instead of raising it."""
    if arguments == ["--version"]:
        print("shallower", versions()["shallower"])
    elif not _explain(arguments):
        if ranks.launched() > 1 and arguments[0] not in TOGETHER:
            raise UserError(
                f"{arguments[0]} runs in one process: start it without torchrun; {', '.join(TOGETHER[:-1])} and {TOGETHER[-1]} run in many"
            )
        with ranks.joined(), shown(ranks.rank() == 0), quiet():
            return app(args=arguments, standalone_mode=False)
    return None

"""The command line.

Results go to stdout, progress and errors to stderr, a user's mistake exits with 2. Imports nothing heavy.
"""

import importlib
import os
import sys
from signal import SIGTERM

import typer

from .. import methods
from ..errors import UserError, arguments_as_options
from ..runtime.signals import terminable
from . import commands, measurement_commands
from .options import Command, CommandEnd, UsageError

INTERRUPTED = 130
SHARED_VERBS = ("shrink", "score", "plan", "compensate", "heal")  # the verbs that many processes can share
SHARED_REPAIR = "--compensate"  # and prune with it
OF_VERB = {"compensate": "compensation", "heal": "healing"}  # whose methods are meant first
VERBS = (
    commands.shrink,
    commands.inspect,
    commands.score,
    commands.plan,
    commands.prune,
    commands.compensate,
    commands.heal,
    measurement_commands.evaluate,
    measurement_commands.sweep,
    measurement_commands.bench,
    measurement_commands.compare,
    measurement_commands.report,
    measurement_commands.card,
    measurement_commands.export,
    commands.quantize,
    measurement_commands.app,
    measurement_commands.doctor,
    measurement_commands.demo,
)

app = typer.Typer(
    name="shallower",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Make decoder language models shallower: score, plan, prune, prove, repair, evaluate.\n\n"
    "MODEL is a folder, a Hub id or a .gguf file. VERB --help NAME explains a method, such as score --help taylor.",
)
for verb in VERBS:
    app.command(cls=Command)(verb)


def _version(show: bool | None) -> None:
    if show:
        print("shallower", importlib.import_module("importlib.metadata").version("shallower"))
        raise typer.Exit


@app.callback()
def _whole(
    version: bool | None = typer.Option(
        None, "--version", help="Show the version and exit.", callback=_version, is_eager=True
    ),
) -> None:
    """Options of the program itself."""


def _explain(arguments: list[str]) -> bool:
    """``VERB --help NAME``: print what the method NAME does and its settings; a name may be that of two methods."""
    if len(arguments) == 3 and arguments[1] in ("--help", "-h") and not arguments[2].startswith("-"):
        for kind in sorted(methods.KINDS, key=lambda kind: OF_VERB.get(arguments[0], "criteria") != kind):
            if arguments[2] in methods.names(kind):
                print(f"{methods.KINDS[kind]} {arguments[2]}\n\n{methods.describe(methods.find(kind, arguments[2]))}")
                return True
        names = "; ".join(f"{kind} are {', '.join(methods.names(kind))}" for kind in methods.KINDS)
        raise UserError(f"unknown method {arguments[2]!r}: {names}")
    return False


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 a mistake of the user's, 130 interrupted, 143 told to stop."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if "LOCAL_RANK" in os.environ and arguments and arguments[0].startswith("--local_rank="):
        arguments = arguments[1:]  # DeepSpeed's launcher puts it first; the environment tells the same
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a formula must not fail on a terminal that knows only ASCII
    with arguments_as_options(_options(arguments)):
        _run_guarded(arguments)


def _options(arguments: list[str]) -> dict[str, str]:
    """The options of the command that is asked for, by the arguments that they stand for."""
    return next((verb.options for verb in VERBS if arguments and verb.__name__ == arguments[0]), {})


def _run_guarded(arguments: list[str]) -> None:
    """Run one command; an error of the user's and an interruption end the process with one line."""
    try:
        _run(arguments or ["--help"])
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader has gone, as head does
    except (UserError, UsageError) as error:
        if _has_flag(arguments, "--verbose", "-v"):
            importlib.import_module("traceback").print_exc()
        text = error.format_message() if isinstance(error, UsageError) else str(error)
        if not getattr(error, "told", False):
            print("error:", " ".join(text.split()) or "see --help", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if _has_flag(arguments, "--verbose", "-v"):
            importlib.import_module("traceback").print_exc()
        print(f"error: {error.filename or 'a file'}: {error.strerror or error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        advice = "--layered, a lower --max-batch-tokens or --micro-batch, --dtype bf16, or --device cpu"
        print(f"error: the GPU's memory is full ({' '.join(str(error).split())[:160]}): try {advice}", file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, typer.Abort) as stop:
        text = getattr(stop, "kept", "") or "nothing was left half-written; run the same command again"
        print(f"{'stopped' if getattr(stop, 'signal', 0) == SIGTERM else 'interrupted'}: {text}", file=sys.stderr)
        sys.exit(getattr(stop, "status", INTERRUPTED))


def _has_flag(arguments: list[str], *flags: str) -> bool:
    return any(flag in arguments for flag in flags)


def _run(arguments: list[str]) -> None:
    """Run one command."""
    if _explain(arguments):
        return
    count = os.environ.get("WORLD_SIZE", "1")
    repairs = arguments[0] == "prune" and any(one.partition("=")[0] == SHARED_REPAIR for one in arguments)
    if count.isdigit() and int(count) > 1 and arguments[0] not in SHARED_VERBS and not repairs:
        raise UserError(
            f"{arguments[0]} runs in one process: start it without torchrun; {', '.join(SHARED_VERBS)} and "
            f"prune {SHARED_REPAIR} run in many"
        )
    with terminable():
        try:
            app(args=arguments, standalone_mode=False, prog_name="shallower")
        except CommandEnd as end:
            raise end.__cause__ from None

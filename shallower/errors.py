"""User errors, one line and exit status 2: each says what was given, what is allowed and what to do.

Messages name arguments. A Python caller reads ``samples=0``; while a command line runs it is ``--samples 0``.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

# Argument -> option of the command that runs, such as ``--out`` or ``--verify/--no-verify``; None: Python calls us. One
# for the whole process, as is the language of messages elsewhere: threads of a command say the same as the command.
_options: Mapping[str, str] | None = None


@contextlib.contextmanager
def arguments_as_options(options: Mapping[str, str]) -> Iterator[None]:
    """Within, messages name arguments as options of the command line.

    Args:
        options: argument -> option; what is not there is ``--`` and the argument's own name with dashes.
    """
    global _options
    before, _options = _options, options
    try:
        yield
    finally:
        _options = before


def argument(name: str, value: Any = None) -> str:
    """An argument as whoever called writes it, for use in messages.

    ``samples`` or ``samples=0`` in Python, ``--samples`` or ``--samples 0`` on the command line; there, true and false
    are an option by themselves (``--no-verify``) and a mapping is ``--set key=value``.
    """
    if _options is None:
        return name if value is None else f"{name}={value}"
    dashed = name.replace("_", "-")
    yes, _, no = _options.get(name, f"--{dashed}").partition("/")
    if value is None or value is True:
        return yes
    if value is False:
        return no or f"--no-{dashed}"
    if isinstance(value, Mapping):
        return " ".join(f"{yes} {key}={one}" for key, one in value.items())
    return f"{yes} {value}"


class UserError(Exception):
    """A mistake or a limit that the caller can act on. The command line prints it as one line and exits with 2.

    Example: ``UserError("at least 1 is needed", samples=0)`` reads ``samples=0: at least 1 is needed``.

    Args:
        text: what is wrong and what to do; it names other arguments by ``argument``.
        arguments: what it is about, put in front.
    """

    def __init__(self, text: str = "", /, **arguments: Any):
        super().__init__(text)
        self.text, self.arguments = text, arguments
        self.told = False  # by another process, of several that fail together

    def __str__(self) -> str:
        separator = ", " if _options is None else " "
        about = separator.join(argument(name, value) for name, value in self.arguments.items())
        return f"{about}: {self.text}" if about else self.text


class Refusal(UserError):
    """The removal cannot be expressed faithfully for this model.

    Names the field, the layers and a legal alternative.
    """


class DiskError(UserError):
    """The disk is full, read-only or failing.

    What was kept so far stays, and the same command goes on once it is mended.
    """


class ProcessLostError(UserError):
    """Another of several processes has ended, so that this one cannot go on. What was kept so far stays."""


class Stopped(KeyboardInterrupt):
    """A signal asked for an end, Ctrl-C or a scheduler's SIGTERM.

    ``kept`` says in words what there is to go on from.
    """

    def __init__(self, signal: int, kept: str = ""):
        super().__init__(kept)
        self.signal, self.kept = signal, kept

    @property
    def status(self) -> int:
        """The exit status that says so: 130 or 143."""
        return 128 + self.signal

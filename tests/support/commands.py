"""Commands run in this process."""

from shallower.cli import main


def status(*arguments) -> int:
    """The exit status of a command."""
    try:
        main([str(argument) for argument in arguments])
    except SystemExit as end:
        return end.code or 0
    return 0

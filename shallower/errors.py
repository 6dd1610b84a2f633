"""User errors, one line and exit status 2: each says what was given, what is allowed and what to do."""


class UserError(Exception):
    """A mistake or a limit that the caller can act on. The command line prints it as one line and exits with 2."""


class Refusal(UserError):
    """The removal cannot be expressed faithfully for this model.

    Names the field, the layers and a legal alternative.
    """


class DiskError(UserError):
    """The disk is full, read-only or failing.

    What was kept so far stays, and the same command goes on once it is mended.
    """


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

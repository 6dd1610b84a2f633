"""The errors that a user can mend: one line that says what was given, what is allowed and what to do."""


class UserError(Exception):
    """A mistake or a limit that the caller can act on. The command line prints it as one line and exits with 2."""


class Refusal(UserError):
    """The removal cannot be expressed faithfully for this model; names the field, the layers and a legal alternative."""


class DiskError(UserError):
    """The disk is full, read-only or failing; what was kept so far stays, and the same command goes on once it is mended."""

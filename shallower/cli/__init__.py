"""The command line: settings made options, the verbs of ``shallower`` called, a table or JSON out."""

from .app import main

__all__ = ["main"]

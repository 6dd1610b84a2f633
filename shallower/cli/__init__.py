"""Command line: settings made options, the verbs called, a table or JSON out."""

from .app import main

__all__ = ["main"]

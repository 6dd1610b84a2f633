"""``python -m shallower``: the command line, for launchers that start modules."""

from .cli import main

if __name__ == "__main__":
    main()

"""The training loop that all ways of healing share: what is trained and how differ by the files in ``healing``."""

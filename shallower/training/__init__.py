"""Training, shared by all ways of healing: what is trained and how differ by the files in ``healing``."""

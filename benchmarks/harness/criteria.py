"""Criteria of whole layers and their parts; those that look at inputs score groups alone."""

from shallower import methods

OF_LAYERS = [name for name in methods.names("criteria") if methods.find("criteria", name).EVIDENCE != "inputs"]

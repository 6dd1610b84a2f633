"""Criteria by what they score: whole layers and their parts, or groups alone."""

from shallower import methods

OF_GROUPS = [name for name in methods.names("criteria") if methods.find("criteria", name).EVIDENCE == "inputs"]
OF_LAYERS = [name for name in methods.names("criteria") if name not in OF_GROUPS]

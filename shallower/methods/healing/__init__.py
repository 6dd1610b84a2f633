"""Healing by training: one file per method, the file name is its name; the loop and the data are in ``training``.

A file has a docstring (claim, what is trained, source, what is our reconstruction), a ``Settings`` dataclass,
``recipe(settings)`` that says how it is trained by default, ``prepare(module, layers, settings)`` that sets what is
trained (``requires_grad``) and returns whatever ``finish`` needs, and ``finish(prepared, folder)`` that turns the
module back into a plain one and leaves what else is worth keeping in the folder. One that learns from a teacher also
has ``teaching(settings)``, its objective, ``freezes(settings)``, whether weights stay that the teacher can share, and
a setting ``teacher``. ``control(settings)`` is there where the dense model is trained by another method as the
control: that method and its settings.
"""

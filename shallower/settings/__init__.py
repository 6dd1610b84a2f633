"""Settings, one frozen dataclass per group of options, with its help at the field.

Nothing heavy is imported here.

The command line makes its options from these fields, and hands the commands the objects; the Python API takes the same
objects, or their fields as plain keywords. Values are understood as people write them (``20%``, ``5.5B``,
``~/text.txt``) in both.
"""

"""The exam of captune's advice: whole decisions on a table of worlds made of feature files.

It serves developers and is no part of the package: `python -m tests.tools.exam --help`.
"""

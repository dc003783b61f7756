"""The wiring: the only room that sees two others at once, one file per command.

Here belongs what joins a config to the things that it names. Never a formula, a file format or a
template: those are only called from here.
"""

"""Makes record sets from what is at hand: one module per source of the sky, run by `python -m`.

Here belong reading a source, turning it into Examples, and saying what could not be turned. Models,
training and anything that needs a device never do: a record set is all that leaves this room.
"""

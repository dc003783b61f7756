"""What a training step would need on hardware that is not there: compiled, and read, never run.

Here belong descriptions of machines, and what can be learned from a compiled program: memory,
collectives, and, marked as a model, time. Never here: what a stage is (`run` builds its step), and
anything that needs a device.
"""

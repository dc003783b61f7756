"""What can be learned of a training step from its compiled program, which never runs.

Never here: what a stage is (`run` builds its step), and anything that needs a device.
"""

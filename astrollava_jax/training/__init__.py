"""Gradients and time: what is learned, step by step, and how it survives.

Here belongs anything that mentions a gradient, a schedule, a clock or a checkpoint. Never a shape
of the model, a word, a pixel or somebody else's tensor name.
"""

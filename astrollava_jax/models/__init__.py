"""Shapes and formulas: what LLaVA computes, layer by layer.

Here belongs anything that a paper would write as an equation. Never a file, a word, somebody else's
tensor name, a gradient or a mesh.
"""

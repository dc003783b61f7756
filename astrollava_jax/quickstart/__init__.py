"""The embedded default: a simulated sky whose truth is known, and the story told on it.

Here belong what the simulated pictures show, how they are drawn, the words said about them, the
small vocabulary of those words, and the small model that learns them. Real pictures, real
tokenizers and anything that training on real input needs never belong here.
"""

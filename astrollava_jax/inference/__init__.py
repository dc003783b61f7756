"""A model that answers: prompts made of pictures and words, greedy decoding, and scores of answers.

Here belongs what turns trained numbers into text, and text into figures. What never belongs here: a
gradient, an optimizer, somebody else's tensor name, or a path to weights (`run` loads them).
"""

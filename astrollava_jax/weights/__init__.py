"""Other people's names: which tensor of theirs is which parameter of ours, and where it lies.

Here belong the tables that say so, the files that hold such tensors, and the config, tokenizer and
processor files that travel with them, all in both directions. Never a formula, a gradient or a
prompt: what is not a permutation of somebody's numbers is a decision of the model.
"""

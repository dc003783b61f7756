"""Words, pixels and token ids: everything between records on disk and the rows of a Batch.

Here belongs what knows of records, templates, tokenizers, pictures, and of the order in which they
are seen. It is NumPy and Grain. What never belongs here: a jax function (a worker process that
calls one may take the accelerator from the training process), a model, a mesh, the names in
somebody's checkpoint.
"""

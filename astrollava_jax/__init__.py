"""LLaVA in JAX: train it in two stages, resume it anywhere, give the weights back to PyTorch."""

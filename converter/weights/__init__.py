"""Lazy tensors, and the files they are read from."""

"""The passes of `convert`: one module, one pass."""

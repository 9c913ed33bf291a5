"""The framework that the passes of `convert` stand on."""

__version__ = "0.1.0"

"""The recipe: its dataclasses, their validation, and the rules between values."""

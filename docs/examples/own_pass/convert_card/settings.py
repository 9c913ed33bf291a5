"""The slot `card` of a recipe. Loaded whenever a recipe is read, so it imports nothing heavy."""

from dataclasses import dataclass, field
from typing import Literal


@dataclass
class CardConfig:
    """What the model card says."""

    title: str = ""
    """First line of the card."""
    license: Literal["apache-2.0", "mit", "other"] = "other"
    languages: list[str] = field(default_factory=lambda: ["en"])

"""How far a folder is from its float model."""

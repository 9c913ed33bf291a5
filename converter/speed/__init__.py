"""How fast a folder runs, and runtime settings that make it faster."""

"""Where checkpoints come from: a folder, the built-in demo, or seeded random weights."""

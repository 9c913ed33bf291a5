"""The texts that models read to be calibrated and evaluated, and their tokens."""

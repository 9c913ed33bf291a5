"""Distance from the float model: statistics, both sides' logits, charts."""

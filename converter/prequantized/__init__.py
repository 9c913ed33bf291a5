"""Checkpoints whose weights are already quantized: what each format's files say, as weights."""

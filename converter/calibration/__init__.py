"""Calibrated quantization: one walk over the layers gathers, searches, rounds and spills."""

"""A checkpoint as a decoder: configuration, layout, rotary positions, the float reference."""

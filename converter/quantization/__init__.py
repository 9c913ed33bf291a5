"""The numerics of quantization: pure functions on tensors."""

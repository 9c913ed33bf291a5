"""The ONNX graph of a decoder: what it is built from, and what a provider can run of it."""

"""A finished folder in onnxruntime-genai: loading, chatting, sampling."""

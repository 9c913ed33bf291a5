"""A finished folder in onnxruntime-genai: loading, chatting, sampling."""

from converter.runtime.session import Runtime

__all__ = ["Runtime"]

"""Tokenizer files that onnxruntime-genai, transformers and tokenizers read to the same ids."""

from converter.tokenizer.prepare import TokenizerFiles, prepare_tokenizer

__all__ = ["TokenizerFiles", "prepare_tokenizer"]

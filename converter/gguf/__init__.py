"""GGUF files, llama.cpp's format, as checkpoints: weights, config.json and tokenizer."""

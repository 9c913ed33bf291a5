"""The command as the tests run it, and a model that converts in an instant."""

import sys

CONVERT = [sys.executable, "-m", "converter.cli.main"]
TINY = [
    "recipe=internlm2_1_8b_cpu_int4",
    "source=synthetic",
    "verify=none",
    "model.config.hidden_size=64",
    "model.config.intermediate_size=96",
    "model.config.num_attention_heads=4",
    "model.config.num_key_value_heads=2",
    "model.config.num_hidden_layers=2",
    "model.config.vocab_size=256",
    "model.config.max_position_embeddings=128",
]

"""What config.json may hold under the keys that decide a decoder."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from converter.model.json_schema import JsonFile, Size, TokenId
from converter.recipe.rules import MOST_POSITIONS

CONFIG_FILE = "config.json"
SIZE = "a positive whole number"
SWITCH = "true or false"
SECTION = "null or an object"
MOST_LAYERS = 10_000
"""More than any model has; it keeps a damaged number from asking for millions of names."""
Positions = Annotated[int, Field(gt=0, le=MOST_POSITIONS)]
Layers = Annotated[int, Field(gt=0, le=MOST_LAYERS)]
MOST_EXPERTS = 10_000
ExpertCount = Annotated[int, Field(ge=0, le=MOST_EXPERTS)]
Epsilon = Annotated[float, Field(ge=0, lt=1)]


class ConfigFile(JsonFile):
    """config.json, as far as it is read. Source: transformers' LlamaConfig and InternLM2Config."""

    vocab_size: Size = Field(description=SIZE)
    hidden_size: Size = Field(description=SIZE)
    intermediate_size: Size = Field(description=SIZE)
    num_hidden_layers: Layers = Field(description=f"{SIZE} of at most {MOST_LAYERS:,}")
    num_attention_heads: Size = Field(description=SIZE)
    num_key_value_heads: Size | None = Field(None, description=SIZE)
    head_dim: Size | None = Field(None, description=SIZE)
    max_position_embeddings: Positions | None = Field(
        None, description=f"a positive whole number of at most {MOST_POSITIONS:,}"
    )
    rms_norm_eps: Epsilon | None = Field(None, description="a number below 1, such as 1e-05")
    tie_word_embeddings: bool | None = Field(None, description=SWITCH)
    num_experts: ExpertCount | None = Field(
        None, description=f"a whole number of at most {MOST_EXPERTS:,}"
    )
    num_local_experts: ExpertCount | None = Field(
        None, description=f"a whole number of at most {MOST_EXPERTS:,}"
    )
    bias: bool | None = Field(None, description=SWITCH)
    is_causal: bool | None = Field(None, description=SWITCH)
    use_sliding_window: bool | None = Field(None, description=SWITCH)
    sliding_window: int | None = Field(None, description="null or a number of tokens")
    hidden_act: str | None = Field(None, description="a name such as 'silu'")
    model_type: str | None = Field(None, description="a name such as 'internlm2'")
    architectures: list[str] | None = Field(None, description="a list of class names")
    layer_types: list[str] | None = Field(None, description="a list of names, one a layer")
    rope_scaling: dict[str, Any] | None = Field(None, description=SECTION)
    rope_parameters: dict[str, Any] | None = Field(None, description=SECTION)
    rotary: dict[str, Any] | None = Field(None, description=SECTION)
    quantization_config: dict[str, Any] | None = Field(None, description=SECTION)
    bos_token_id: int | None = Field(None, description="a token id, or null")
    eos_token_id: TokenId | list[TokenId] | None = Field(
        None, description="a token id, a list of them, or null"
    )
    pad_token_id: int | None = Field(None, description="a token id, or null")


class GenerationConfigFile(JsonFile):
    """generation_config.json, as far as it is read; its sampling options are the runtime's too."""

    bos_token_id: int | None = Field(None, description="a token id, or null")
    eos_token_id: TokenId | list[TokenId] | None = Field(
        None, description="a token id, a list of them, or null"
    )
    pad_token_id: int | None = Field(None, description="a token id, or null")

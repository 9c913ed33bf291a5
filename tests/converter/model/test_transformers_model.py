"""A class run layer by layer on lazy weights, against the same class with all of its weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import EVEN, SIZES, VOCABULARY, WINDOW
from transformers import AutoConfig, AutoModelForCausalLM

from converter.errors import ConvertError
from converter.model import transformers_model
from converter.model.transformers_model import ExpertParameter, TransformersModel, Vocabulary
from converter.weights.weight import ComputedWeight, TensorWeight, Weight

pytestmark = pytest.mark.slow
TOKENS, VOCAB = 40, VOCABULARY
IDS = torch.randint(0, VOCAB, (2, TOKENS), generator=torch.Generator().manual_seed(1))

WIDE, PLAIN = SIZES, EVEN
GPT = {"vocab_size": VOCAB, "n_embd": 64, "n_layer": 3, "n_head": 4}
FOUR = {"num_hidden_layers": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}


def rope(kind: str, **values: Any) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 10000.0, **values}}


ORIGINAL = {"original_max_position_embeddings": 32}
LLAMA3 = rope("llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, **ORIGINAL)
LONGROPE = rope(
    "longrope", long_factor=[1.0 + i for i in range(8)], short_factor=[1.0] * 8, **ORIGINAL
)
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", PLAIN),
    "llama_wide": ("llama", WIDE),
    "llama_tied": ("llama", WIDE | {"tie_word_embeddings": True}),
    "llama_attention_bias": ("llama", WIDE | {"attention_bias": True}),
    "llama_mlp_bias": ("llama", WIDE | {"mlp_bias": True}),
    "llama_one_layer": ("llama", WIDE | {"num_hidden_layers": 1}),
    "llama_llama3": ("llama", WIDE | LLAMA3),
    "llama_yarn": ("llama", WIDE | rope("yarn", factor=4.0, **ORIGINAL)),
    "llama_linear": ("llama", WIDE | rope("linear", factor=4.0)),
    "llama_dynamic": (
        "llama",
        WIDE | {"max_position_embeddings": 16} | rope("dynamic", factor=4.0),
    ),
    "mistral": ("mistral", WIDE | {"sliding_window": None}),
    "mistral_window": ("mistral", WIDE | WINDOW),
    "ministral": ("ministral", WIDE | WINDOW),
    "qwen2": ("qwen2", PLAIN),
    "qwen2_windows": (
        "qwen2",
        PLAIN | WINDOW | {"use_sliding_window": True, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", WIDE),
    "qwen3_tied": ("qwen3", WIDE | {"tie_word_embeddings": True}),
    "phi3": ("phi3", PLAIN),
    "phi3_window": ("phi3", PLAIN | WINDOW),
    "phi3_partial": (
        "phi3",
        PLAIN
        | rope("default", partial_rotary_factor=0.75)
        | {"partial_rotary_factor": 0.75, "tie_word_embeddings": True},
    ),
    "phi3_longrope": ("phi3", PLAIN | ORIGINAL | LONGROPE),
    "gemma": ("gemma", WIDE),
    "gemma2": ("gemma2", WIDE | WINDOW | {"query_pre_attn_scalar": 24}),
    "gemma3_text": (
        "gemma3_text",
        WIDE | WINDOW | {"query_pre_attn_scalar": 24, "num_hidden_layers": 6},
    ),
    "internlm3": ("internlm3", WIDE),
    "smollm3": ("smollm3", PLAIN | FOUR),
    "granite": (
        "granite",
        PLAIN
        | {"embedding_multiplier": 12.0, "attention_multiplier": 0.0625}
        | {"residual_multiplier": 0.22, "logits_scaling": 8.0},
    ),
    "granitemoehybrid": (
        "granitemoehybrid",
        PLAIN
        | {"mamba_n_heads": 6, "mamba_expand": 2, "mamba_d_head": 32, "num_local_experts": 0}
        | {"shared_intermediate_size": 112, "position_embedding_type": "rope"}
        | {"layers_block_type": ["attention"] * 3, "layer_types": ["full_attention"] * 3},
    ),
    "olmo": ("olmo", PLAIN),
    "olmo2": ("olmo2", PLAIN),
    "olmo3": ("olmo3", PLAIN | WINDOW | FOUR),
    "cohere": ("cohere", PLAIN),
    "cohere2": ("cohere2", WIDE | WINDOW | FOUR),
    "stablelm": ("stablelm", PLAIN),
    "glm": ("glm", WIDE),
    "glm4": ("glm4", WIDE),
    "nemotron": ("nemotron", WIDE),
    "starcoder2": ("starcoder2", PLAIN),
    "phi": ("phi", PLAIN),
    "exaone4": ("exaone4", WIDE | WINDOW | FOUR),
    "helium": ("helium", WIDE | {"head_dim": 16}),
    "seed_oss": ("seed_oss", WIDE),
    "arcee": ("arcee", WIDE),
    "apertus": ("apertus", WIDE),
    "hunyuan_v1_dense": ("hunyuan_v1_dense", WIDE),
    "ernie4_5": ("ernie4_5", WIDE),
    "gpt2": ("gpt2", GPT),
    "gpt_bigcode": ("gpt_bigcode", GPT),  # it shapes what the head reads by the ids
    "gptj": ("gptj", GPT | {"rotary_dim": 8}),  # its layers give tuples, as the next two's do
    "bloom": ("bloom", {"vocab_size": VOCAB, "hidden_size": 64, "n_layer": 3, "n_head": 4}),
    "falcon": ("falcon", PLAIN | {"num_kv_heads": 2, "new_decoder_architecture": True}),
    "opt": ("opt", PLAIN | {"ffn_dim": 112, "word_embed_proj_dim": 64}),  # projects in and out
    "gpt_neox": ("gpt_neox", PLAIN),
    "falcon_h1": (  # its layers give tuples
        "falcon_h1",
        PLAIN
        | {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16}
        | {"mamba_d_state": 16, "mamba_chunk_size": 16},
    ),
    "hyperclovax": ("hyperclovax", PLAIN),
    "jais2": ("jais2", PLAIN),
    "vaultgemma": ("vaultgemma", WIDE),
    "nanochat": ("nanochat", PLAIN),
    "bitnet": ("bitnet", PLAIN),
    "minicpm3": ("minicpm3", WIDE | {"num_key_value_heads": 6}),
    "mixtral": ("mixtral", WIDE | LOCAL_EXPERTS | {"output_router_logits": True}),
    "qwen2_moe": (
        "qwen2_moe",
        PLAIN | EXPERTS | {"moe_intermediate_size": 32, "shared_expert_intermediate_size": 48},
    ),
    "qwen3_moe": ("qwen3_moe", WIDE | EXPERTS | {"moe_intermediate_size": 32}),
    "olmoe": ("olmoe", PLAIN | EXPERTS),
    "gpt_oss": ("gpt_oss", WIDE | WINDOW | LOCAL_EXPERTS),
    "granitemoe": ("granitemoe", PLAIN | LOCAL_EXPERTS),
    "ernie4_5_moe": (
        "ernie4_5_moe",
        PLAIN | {"moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32},
    ),
}


def plain_model(config: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The class with all of its weights: random ones, norms and biases included."""
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(values * 0.2)
            else:
                parameter.copy_(values * parameter.shape[-1] ** -0.5)
    return model


def weights_of(model: Any) -> dict[str, Weight]:
    """Weights by the class's names; a tied head is the embedding, as checkpoints have it."""
    head = model.get_output_embeddings()
    names = [name for name, module in model.named_modules() if module is head]
    tied = {f"{names[0]}.weight"} if model.config.tie_word_embeddings else set()
    return {n: TensorWeight(t) for n, t in model.state_dict().items() if n not in tied}


def made(config: Any, weights: dict[str, Weight]) -> TransformersModel:
    """The model on weights by the class's names, the vocabulary's among them."""
    model = transformers_model._empty_model(config, torch.float32)
    names = {id(module): name for name, module in model.named_modules()}
    embedding = weights[f"{names[id(model.get_input_embeddings())]}.weight"]
    head = names[id(model.get_output_embeddings())]
    own, bias = weights.get(f"{head}.weight", embedding), weights.get(f"{head}.bias")
    return TransformersModel(config, weights, Vocabulary(embedding, own, bias))


def pair_of(name: str, **changes: Any) -> tuple[TransformersModel, Any]:
    """A case's model layer by layer, and the class with all of its weights."""
    kind, values = CASES[name]
    config = AutoConfig.for_model(kind, **values | changes)
    model = plain_model(config)
    return made(config, weights_of(model)), model


def near(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).norm() <= 1e-6 * expected.norm())


@pytest.mark.parametrize("name", CASES)
def test_what_it_computes_is_what_the_whole_class_computes(name: str) -> None:
    found, model = pair_of(name)
    with torch.no_grad():
        expected = model(IDS, output_hidden_states=True, use_cache=False)
    hidden = found.embed(IDS)
    for number in range(found.num_layers):
        assert near(hidden, expected.hidden_states[number])
        with found.layer(number) as module:
            hidden = found.run_layer(module, hidden)
    assert near(found.logits(hidden), expected.logits)
    assert all(parameter.is_meta for parameter in found._model.parameters())


class Recording(TensorWeight):
    """A weight that notes how many rows each reading takes."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor)
        self.read_rows: list[int] = []

    def rows(self, start: int, stop: int) -> torch.Tensor:
        self.read_rows.append(stop - start)
        return super().rows(start, stop)


def test_the_embedding_reads_the_rows_in_use() -> None:
    found, model = pair_of("gemma3_text")
    table = Recording(model.get_input_embeddings().weight)
    found = made(model.config, {**found.weights, "model.embed_tokens.weight": table})
    found.embed(IDS[:, :1])
    table.read_rows.clear()
    ids = torch.tensor([[150, 7, 150, 7]])
    hidden = found.embed(ids)
    assert table.read_rows == [1, 1]
    with torch.no_grad():
        assert torch.equal(hidden, model.get_input_embeddings()(ids))


@pytest.mark.parametrize("name", ["phi", "gemma2", "llama_tied"])
def test_the_head_is_multiplied_in_parts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found, model = pair_of(name)
    whole = found.logits(found.hidden_states(IDS))
    key = "model.embed_tokens.weight" if model.config.tie_word_embeddings else "lm_head.weight"
    table = Recording(found.weights[key].read())
    monkeypatch.setattr(transformers_model, "HEAD_ROWS", 7)
    parts = made(model.config, {**found.weights, key: table})
    hidden = parts.hidden_states(IDS)
    table.read_rows.clear()
    assert near(parts.logits(hidden), whole)
    assert [rows for rows in table.read_rows if rows > 1] == [7] * 22 + [6]


def test_hidden_states_after_some_layers() -> None:
    found, model = pair_of("llama")
    with torch.no_grad():
        states = model(IDS, output_hidden_states=True).hidden_states
    for layers in range(3):
        assert near(found.hidden_states(IDS, layers), states[layers])


def test_shapes_may_alternate_and_longer_sequences_leave_no_trace() -> None:
    found, _ = pair_of("llama_dynamic")
    fresh, _ = pair_of("llama_dynamic")
    expected = fresh.hidden_states(IDS[:, :20])
    found.hidden_states(IDS)
    with found.layer(0) as module:
        long = found.run_layer(module, found.embed(IDS))
        short = found.run_layer(module, found.embed(IDS[:1, :8]))
        again = found.run_layer(module, found.embed(IDS))
    assert torch.equal(long, again)
    assert short.shape == (1, 8, 96)
    assert torch.equal(found.hidden_states(IDS[:, :20]), expected)


@pytest.mark.parametrize("name", ["llama_wide", "stablelm"])
def test_the_parameters_of_one_layer_are_present_at_once(name: str) -> None:
    found, model = pair_of(name)
    layer = sum(p.numel() for p in model.base_model.layers[0].parameters())
    rest = VOCAB * 96  # the embedding, when every row is in use
    counts: list[int] = []

    def count(*_: Any) -> None:
        counts.append(sum(p.numel() for p in found._model.parameters() if not p.is_meta))

    for module in found._model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(count)
    found.logits(found.hidden_states(IDS))
    assert max(counts) <= max(layer, rest)
    with found.layer(1) as module:
        assert not any(parameter.is_meta for parameter in module.parameters())
    assert all(parameter.is_meta for parameter in module.parameters())


@pytest.mark.parametrize("name", ["mixtral", "granitemoe", "gpt_oss", "qwen2_moe"])
def test_of_experts_one_is_read_at_a_time(name: str) -> None:
    model = plain_model(AutoConfig.for_model(CASES[name][0], **CASES[name][1]))
    asked: list[tuple[int, int]] = []

    def counted(weight: Weight) -> Weight:
        def compute(start: int, stop: int) -> torch.Tensor:
            asked.append((start, stop))
            return weight.rows(start, stop)

        stacked = len(weight.shape) == 3
        return ComputedWeight(weight.shape, weight.dtype, compute, "") if stacked else weight

    weights = {key: counted(weight) for key, weight in weights_of(model).items()}
    found = made(model.config, weights)
    with torch.no_grad():
        expected = model(IDS, use_cache=False).logits
    assert near(found.logits(found.hidden_states(IDS)), expected)
    assert asked and all(stop - start == 1 for start, stop in asked)
    with found.layer(1) as module:
        pass
    assert not [m for m in module.modules() for v in vars(m).values() if type(v) is ExpertParameter]


def test_large_models_are_built_without_their_parameters() -> None:
    config = AutoConfig.for_model("llama", hidden_size=2**14, intermediate_size=2**15)
    model = transformers_model._empty_model(config, torch.float32)
    assert sum(parameter.nbytes for parameter in model.parameters()) > 2**37
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())


def test_nothing_stays_when_a_run_fails() -> None:
    found, _ = pair_of("llama")
    with pytest.raises(ValueError, match="stop"), found.layer(0):
        raise ValueError("stop")
    assert all(parameter.is_meta for parameter in found._model.parameters())
    found.logits(found.hidden_states(IDS))


def test_absent_biases_are_zero() -> None:
    found, model = pair_of("llama_attention_bias")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.bias.zero_()
        expected = model(IDS).logits
    weights = {n: w for n, w in found.weights.items() if not n.endswith("o_proj.bias")}
    found = made(model.config, weights)
    assert near(found.logits(found.hidden_states(IDS)), expected)


@pytest.mark.parametrize(
    "name",
    ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"],
)
def test_a_parameter_that_is_missing_or_of_another_shape(name: str) -> None:
    found, model = pair_of("llama")
    others = {key: weight for key, weight in found.weights.items() if key != name}
    for weights, text in (
        (others, f"(names no tensor for {name})|({name} is missing)"),
        ({**others, name: TensorWeight(torch.zeros(5))}, f"{name} has the shape \\(5,\\)"),
    ):
        with pytest.raises(ConvertError, match=text):
            made(model.config, weights).hidden_states(IDS)


def test_layers_that_read_token_ids_are_refused() -> None:
    values = WIDE | WINDOW | {"num_hidden_layers": 6, "global_head_dim": 48}
    values |= {"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 16}
    model = plain_model(AutoConfig.for_model("gemma4_text", **values))
    with pytest.raises(ConvertError, match="read token ids"):
        made(model.config, weights_of(model)).embed(IDS)


def test_a_config_without_a_causal_language_model() -> None:
    table = TensorWeight(torch.zeros(2, 2))
    with pytest.raises(ConvertError, match="vit has no causal language model"):
        TransformersModel(AutoConfig.for_model("vit"), {}, Vocabulary(table, table))


def test_the_config_that_is_given_stays_as_it_is() -> None:
    config = AutoConfig.for_model("mixtral", **WIDE | LOCAL_EXPERTS, output_router_logits=True)
    before = config.to_dict()
    made(config, weights_of(plain_model(config)))
    assert config.output_router_logits
    assert config.to_dict() | {"dtype": None} == before | {"dtype": None}

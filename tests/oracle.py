"""What the tests compare with: transformers' Llama, and a graph run by onnxruntime."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from converter.model.checkpoint import Checkpoint


def llama_of(checkpoint: Checkpoint) -> LlamaForCausalLM:
    """transformers' model of an InternLM2 checkpoint, without any of the project's code."""
    config = checkpoint.config
    kv_heads, heads = config["num_key_value_heads"], config["num_attention_heads"]
    head_dim = config["hidden_size"] // heads
    tensors = {name: weight.read().float() for name, weight in checkpoint.tensors.items()}
    state = {
        "model.embed_tokens.weight": tensors["model.tok_embeddings.weight"],
        "model.norm.weight": tensors["model.norm.weight"],
        "lm_head.weight": tensors["output.weight"],
    }
    for layer in range(config["num_hidden_layers"]):
        old, new = f"model.layers.{layer}.", f"model.layers.{layer}."
        for kind in ("weight", "bias"):
            if f"{old}attention.wqkv.{kind}" not in tensors:
                continue
            wqkv = tensors[f"{old}attention.wqkv.{kind}"]
            tail = wqkv.shape[1:]
            grouped = wqkv.reshape(kv_heads, heads // kv_heads + 2, head_dim, *tail)
            state |= {
                f"{new}self_attn.q_proj.{kind}": grouped[:, :-2].reshape(-1, *tail),
                f"{new}self_attn.k_proj.{kind}": grouped[:, -2].reshape(-1, *tail),
                f"{new}self_attn.v_proj.{kind}": grouped[:, -1].reshape(-1, *tail),
                f"{new}self_attn.o_proj.{kind}": tensors[f"{old}attention.wo.{kind}"],
            }
        state |= {
            f"{new}input_layernorm.weight": tensors[f"{old}attention_norm.weight"],
            f"{new}post_attention_layernorm.weight": tensors[f"{old}ffn_norm.weight"],
            f"{new}mlp.gate_proj.weight": tensors[f"{old}feed_forward.w1.weight"],
            f"{new}mlp.up_proj.weight": tensors[f"{old}feed_forward.w3.weight"],
            f"{new}mlp.down_proj.weight": tensors[f"{old}feed_forward.w2.weight"],
        }
    scaling = config["rope_scaling"]
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=config["vocab_size"],
            hidden_size=config["hidden_size"],
            intermediate_size=config["intermediate_size"],
            num_hidden_layers=config["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            max_position_embeddings=config["max_position_embeddings"],
            rms_norm_eps=config["rms_norm_eps"],
            rope_theta=config["rope_theta"],
            rope_scaling=scaling and {"rope_type": scaling["type"], "factor": scaling["factor"]},
            attention_bias=config["bias"],
        )
    )
    model.load_state_dict(state)
    return model.eval()


def feeds(session: onnxruntime.InferenceSession, ids: np.ndarray) -> dict[str, np.ndarray]:
    found = {}
    for item in session.get_inputs():
        if item.name.startswith("past"):
            dtype = np.float16 if "float16" in item.type else np.float32
            found[item.name] = np.zeros((1, item.shape[1], 0, item.shape[3]), dtype)
    lengths = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if "position_ids" in {item.name for item in session.get_inputs()}:
        lengths["position_ids"] = np.arange(ids.shape[1])[None]
    return found | lengths


def run_graph(model: ir.Model, folder: Path, ids: torch.Tensor) -> torch.Tensor:
    path = folder / "graph.onnx"
    ir.save(model, path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], feeds(session, ids.numpy()))
    return torch.from_numpy(logits).float()

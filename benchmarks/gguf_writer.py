"""Write a Llama checkpoint (safetensors, Hugging Face names) as a GGUF file for llama.cpp.

    python benchmarks/gguf_writer.py LLAMA_FOLDER OUTPUT.gguf

bf16 weights become f16, float32 ones stay. Runs in llama.cpp's environment (gguf, numpy). Its
"llama" architecture rotates neighbouring pairs, so the rows of q and k are reordered from
rotate-half to pairs.
"""

from __future__ import annotations

import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "post_attention_layernorm.weight": "ffn_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}


def tensors(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and values of all tensors, as they will be written."""
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            begin, end = entry["data_offsets"]
            raw = np.memmap(path, np.uint8, "r", 8 + length + begin, end - begin)
            if entry["dtype"] == "F32":
                yield name, raw.view(np.float32).reshape(entry["shape"])
                continue
            assert entry["dtype"] == "BF16"
            wide = (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            # llama.cpp keeps norms in float32.
            dtype = np.float32 if len(entry["shape"]) == 1 else np.float16
            yield name, wide.reshape(entry["shape"]).astype(dtype)


def gguf_name(name: str) -> str:
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}"


def pairs(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from [first halves | second halves] to neighbouring pairs."""
    rows, columns = values.shape
    split = values.reshape(heads, 2, rows // heads // 2, columns)
    return split.swapaxes(1, 2).reshape(rows, columns)


def write(folder: Path, output: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    # The tensors wait in a file: in memory they would be as large as the model.
    writer = gguf.GGUFWriter(output, "llama", use_temp_file=True)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    rope = config.get("rope_parameters") or config  # where transformers 5 and 4 keep it
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("none")
    for name, values in tensors(folder):
        if "q_proj" in name or "k_proj" in name:
            values = pairs(values, heads if "q_proj" in name else kv_heads)
        writer.add_tensor(gguf_name(name), np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]))

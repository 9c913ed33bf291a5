"""A packaged folder's graph, changed so that the CPU runs it or that it gives every token's logits.

The weights stay where they are: the changed graph is a few hundred kilobytes in memory that refer
to the same data file, so a folder can be evaluated without writing into it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnx_ir.passes.common as ir_passes

from converter.graph.names import LAST_TOKEN, MODEL_FILE, residual_nodes
from converter.providers import CPU
from converter.recipe.schema import INT8_ACTIVATIONS

ACCURACY_LEVEL = "accuracy_level"
FLOAT_ACTIVATIONS = 1
DATA_FOLDER = "session.model_external_initializers_file_folder_path"
"""onnxruntime's session option for the place of the data file of a model given as bytes."""


def full_logits_model(folder: Path) -> bytes:
    """The folder's graph with logits (batch_size, sequence_length, vocab_size), for the CPU.

    Open it with `full_logits_session`, or set the session option `DATA_FOLDER` to the folder.
    bfloat16 becomes float32, for which the CPU has kernels; the weights keep their values.
    """
    model = ir.load(folder / MODEL_FILE)
    _keep_all_tokens(model)
    widen(model)
    return bytes(ir.to_proto(model).SerializeToString())


def full_logits_session(folder: Path, threads: int = 0) -> Any:
    """An onnxruntime session on the CPU over `full_logits_model(folder)`; 0 threads: its choice."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(DATA_FOLDER, str(folder))
    options.intra_op_num_threads = threads
    model = full_logits_model(folder)
    return onnxruntime.InferenceSession(model, options, providers=[CPU.onnxruntime_name])


def widen(model: ir.Model) -> bool:
    """Turn a bfloat16 graph into a float32 one on the same weights; False when it has no bf16."""
    narrow = [
        value for value in model.graph.initializers.values() if value.dtype == ir.DataType.BFLOAT16
    ]
    if not narrow:
        return False
    for value in narrow:
        _cast_initializer(model.graph, value)
    for node in model.graph:
        to = node.attributes.get("to")
        if to is not None and to.as_int() == ir.DataType.BFLOAT16:
            node.attributes["to"] = ir.AttrInt64("to", ir.DataType.FLOAT)
    made = [value for node in model.graph for value in node.outputs]
    for value in [*model.graph.inputs, *made]:
        if value.dtype == ir.DataType.BFLOAT16:
            value.dtype = ir.DataType.FLOAT
    return True


def float_activations(model: ir.Model) -> bool:
    """Let quantized matrices multiply with float activations; False where they do already.

    Source: accuracy_level of MatMulNBits and QMoE in onnxruntime's docs/ContribOperators.md: 1 is
    float32.
    """
    rounding = [
        node
        for node in model.graph
        if node.op_type in ("MatMulNBits", "QMoE") and _accuracy_level(node) == INT8_ACTIVATIONS
    ]
    for node in rounding:
        node.attributes[ACCURACY_LEVEL] = ir.AttrInt64(ACCURACY_LEVEL, FLOAT_ACTIVATIONS)
    return bool(rounding)


def _accuracy_level(node: ir.Node) -> int:
    attribute = node.attributes.get(ACCURACY_LEVEL)
    return 0 if attribute is None else attribute.as_int()


def _cast_initializer(graph: ir.Graph, value: ir.Value) -> None:
    uses = list(value.uses())
    cast = ir.node("Cast", [value], {"to": ir.DataType.FLOAT}, name=f"/widen/{value.name}")
    cast.outputs[0].name = f"{value.name}.fp32"
    for node, place in uses:
        node.replace_input_with(place, cast.outputs[0])
    graph.insert_before(graph[0], cast)


def _keep_all_tokens(model: ir.Model) -> None:
    for node in model.graph:
        if node.name == LAST_TOKEN:
            (kept,), hidden = node.outputs, node.inputs[0]
            assert hidden is not None
            for user, place in list(kept.uses()):
                user.replace_input_with(place, hidden)
            logits = model.graph.outputs[0]
            batch, _, vocab_size = logits.shape or (None, None, None)
            logits.shape = ir.Shape([batch, "sequence_length", vocab_size])
            ir_passes.RemoveUnusedNodesPass()(model)
            return


def cut_model(path: Path, cut: Path, layers: int) -> None:
    """The graph up to the residual stream that layer number `layers` starts from.

    Its activations are float, whatever the whole graph's are.
    """
    model = ir.load(path)
    float_activations(model)
    node = next(node for node in model.graph if node.name in residual_nodes(layers))
    hidden = node.outputs[-1]
    model.graph.outputs[:] = [hidden]
    ir_passes.RemoveUnusedNodesPass()(model)
    used = {value.name for item in model.graph for value in item.inputs if value is not None}
    model.graph.inputs[:] = [value for value in model.graph.inputs if value.name in used]
    widen(model)
    ir.save(model, cut)

"""The hand-off to Olive: with the real package, and with stand-ins that misbehave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from tokenizers import Tokenizer

pytest.importorskip("onnxruntime_genai")

from converter.cli.compose import compose_recipe
from converter.cli.main import main as command
from converter.engine.contract import Run
from converter.engine.execution import run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.evaluation.runtime_logits import folder_logits
from converter.olive.agreement import agreement
from converter.olive.candidate import interface_problems
from converter.olive.config import PlannedPass, plan_problems, planned_passes, read_workflow
from converter.olive.process import ask, check_passes, environment, run_passes
from converter.recipe.schema import OliveConfig, OlivePassConfig, Recipe
from converter.runtime.cpu_folder import generate
from converter.storage.hashing import hash_file
from converter.storage.staging import Staging
from passes.olive import Olive

pytestmark = pytest.mark.slow

needs_olive = pytest.mark.skipif(
    find_spec("olive") is None, reason="olive-ai is not installed (the extra `olive`)"
)
TEXTS = (
    "Once upon a time there was a little dog. The dog was happy and ran to the park with a ball.",
    "Tom had a big cat. One day the cat was hungry, and Tom gave the cat some fish and milk.",
    "<|im_start|>user\nWhat does the cow say?<|im_end|>\n<|im_start|>assistant\nThe cow says moo.",
)


def convert(output: Path, *words: str) -> tuple[Path, dict[str, Any]]:
    """Run a recipe without verify; gives the folder and its lock file."""
    recipe = compose_recipe([*words, "verify=none", f"output={output}"])
    run_recipe(recipe, make_passes(recipe.passes))
    return output, json.loads((output / "convert.lock.json").read_text())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo model in fp32 and in int4, without Olive."""
    folder = tmp_path_factory.mktemp("plain")
    return {
        quant: convert(folder / quant, "recipe=demo", f"quant={quant}")[0]
        for quant in ("none", "rtn")
    }


def rows_of(folder: Path) -> list[list[int]]:
    """The texts as the folder's tokenizer cuts them, with BOS."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    return [[1, *tokenizer.encode(text, add_special_tokens=False).ids] for text in TEXTS]


def logits_of(folder: Path) -> torch.Tensor:
    """Logits (tokens of all texts, vocab_size), each text from an empty cache."""
    rows = [np.asarray([row], dtype=np.int64) for row in rows_of(folder)]
    return torch.cat([torch.from_numpy(next(folder_logits(folder, row))) for row in rows])


def graph_of(folder: Path) -> ir.Graph:
    return ir.load(folder / "model.onnx").graph


# Presets, with the real Olive

PRESETS = {
    # preset: where it starts from, operators that it must bring, type of the caches and logits,
    # largest mean KL divergence from the folder without Olive
    "fp16": ("none", {}, "FLOAT16", "FLOAT16", 1e-4),
    "fp16_fp32_logits": ("none", {}, "FLOAT16", "FLOAT", 1e-4),
    "kquant": ("none", {"MatMulNBits": 26}, "FLOAT", "FLOAT", 0.15),
    "qdq": ("rtn", {"DequantizeLinear": 26}, "FLOAT", "FLOAT", 1e-3),
    "int8_embedding": ("none", {"GatherBlockQuantized": 1}, "FLOAT", "FLOAT", 1e-3),
}


@needs_olive
@pytest.mark.parametrize("preset", PRESETS)
def test_a_preset_gives_the_same_model(
    plain: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, preset: str
) -> None:
    # All presets' settings are checked together, in one process, by another test.
    monkeypatch.setattr("passes.olive.check_passes", lambda *_: [])
    start, operators, caches, logits, limit = PRESETS[preset]
    folder, lock = convert(tmp_path / "out", f"recipe=demo_olive_{preset}")
    graph, found = graph_of(folder), Counter(node.op_type for node in graph_of(folder))
    assert {name: found[name] for name in operators} == operators
    assert {value.name: str(value.dtype) for value in graph.outputs}["logits"] == logits
    assert {str(value.dtype) for value in graph.inputs if "past" in str(value.name)} == {caches}
    order = [value.name for value in graph_of(plain[start]).outputs]
    assert [value.name for value in graph.outputs] == order

    found_here = agreement(logits_of(plain[start]), logits_of(folder))
    assert found_here.mean_kld < limit
    prompt = rows_of(folder)[0][:8]
    if preset != "kquant":  # four bits change a token now and then
        assert generate(folder, prompt, 24)[0] == generate(plain[start], prompt, 24)[0]
        assert lock["facts"]["olive"]["same_tokens"] == lock["facts"]["olive"]["steps"] == 16
    assert lock["facts"]["olive"]["mean_kld"] <= limit

    assert set(lock["files"]) == {path.name for path in folder.iterdir()} - {"convert.lock.json"}
    for name, entry in lock["files"].items():
        assert entry == {
            "size": (folder / name).stat().st_size,
            "blake3": hash_file(folder / name),
        }
    assert lock["versions"]["olive-ai"] and lock["olive"][0]["type"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@needs_olive
def test_olives_evaluator_agrees_with_the_logits(
    plain: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows: list[list[int]] = []
    module = sys.modules[Olive.__module__]
    chosen = module.evaluation_rows

    def remembered(*args: Any) -> list[list[int]]:
        rows.extend(chosen(*args))
        return rows

    monkeypatch.setattr(module, "evaluation_rows", remembered)
    folder, lock = convert(tmp_path / "out", "recipe=demo_olive_evaluate")
    facts = lock["facts"]["olive"]
    ids = np.asarray(rows, dtype=np.int64)
    losses = [
        torch.nn.functional.cross_entropy(torch.from_numpy(logits[:-1]), torch.from_numpy(row[1:]))
        for row, logits in zip(ids, folder_logits(folder, ids), strict=True)
    ]
    expected = float(torch.stack(losses).mean().exp())
    assert facts["perplexity-perplexity"] == pytest.approx(expected, rel=1e-3)
    weights = sum(
        value.const_value.nbytes
        for value in graph_of(folder).initializers.values()
        if value.const_value is not None
    )
    assert facts["size_on_disk-bytes"] > weights
    assert facts["latency-avg"] > 0
    for name in ("model.onnx", "model.onnx.data", "genai_config.json"):
        assert (folder / name).read_bytes() == (plain["rtn"] / name).read_bytes()
    assert "full_logits.onnx" not in lock["files"]


# Settings, checked before any work


def problems_of(*passes: tuple[str, dict[str, Any]], quant: str = "none") -> list[str]:
    recipe = compose_recipe(["recipe=demo", f"quant={quant}"])
    recipe.olive.passes = [OlivePassConfig(kind, config) for kind, config in passes]
    return [str(problem) for problem in Olive().requires(recipe, None)]


@needs_olive
def test_everything_wrong_with_the_settings_is_said_at_once() -> None:
    found = problems_of(
        ("OnnxFloatToFloat61", {}),
        ("OnnxKQuantQuantization", {"bitz": 4, "block_size": "wide"}),
        ("GraphSurgeries", {"surgeries": [{"surgeon": "RenameOutput"}]}),
        ("GraphSurgeries", {"surgeries": [{"surgeon": "RenameInputs", "old_name": ["x"]}]}),
        ("GptqQuantizer", {}),
        ("OptimumConversion", {}),
        ("AddOliveMetadata", {}),
        ("OnnxStaticQuantization", {"data_config": {"user_script": "evil.py"}}),
        ("OnnxFloatToFloat16", {"external_data_name": "../../elsewhere"}),
        ("OnnxHqqQuantization", {"bits": 4}),
    )
    text = "\n".join(found)
    for expected in (
        "olive.passes[0]: Olive has no pass 'OnnxFloatToFloat61'",
        "write type: OnnxFloatToFloat16",
        "olive.passes[1]: Olive's OnnxKQuantQuantization has no setting 'bitz'",
        "write bits",
        "olive.passes[1]: block_size='wide'",
        "olive.passes[2]: surgery 0: Olive has no surgeon 'RenameOutput'",
        "write RenameOutputs",
        "RenameInputs has no parameter 'old_name'",
        "RenameInputs lacks the parameter 'old_names'",
        "olive.passes[4]: Olive's GptqQuantizer does not work on an ONNX model",
        "olive.passes[5]: Olive's OptimumConversion takes HfModelHandler",
        "olive.passes[6]: Olive's AddOliveMetadata lacks the setting graph_name",
        "olive.passes[7]: data_config reaches outside of the recipe",
        "olive.passes[8]: external_data_name reaches outside of the recipe",
        "olive.passes[9]: Olive's OnnxHqqQuantization renames the output `logits` to `logits_Q4`",
    ):
        assert expected in text, (expected, text)


@needs_olive
def test_the_presets_settings_are_those_that_olive_knows() -> None:
    planned = [
        item
        for preset in PRESETS
        for item in planned_passes(compose_recipe([f"recipe=demo_olive_{preset}"]).olive)
    ]
    assert len(planned) == 6
    assert check_passes(planned, "cpu") == []


def test_a_pass_that_renames_the_logits_is_refused_unless_they_are_safe() -> None:
    recipe = compose_recipe(["recipe=demo", "quant=none"])
    quantized = compose_recipe(["recipe=demo", "quant=rtn"])

    def refused(config: dict[str, Any], recipe: Recipe = recipe, *later: PlannedPass) -> bool:
        first = PlannedPass("here", "OnnxBlockWiseRtnQuantization", config)
        found = plan_problems([first, *later], recipe)
        return any("renames the output" in problem.found for problem in found)

    surgery = {"surgeon": "RenameOutputs", "old_names": ["logits_Q4"], "new_names": ["logits"]}
    back = PlannedPass("here", "GraphSurgeries", {"surgeries": [surgery]})
    assert refused({})
    assert refused({"nodes_to_exclude": ["/model/layers.0/attn/qkv_proj/MatMul"]})
    assert refused({"nodes_to_include": ["/lm_head/MatMul"]})
    assert not refused({"nodes_to_exclude": ["/lm_head/MatMul"]})
    assert not refused({"nodes_to_include": ["/model/layers.0/attn/qkv_proj/MatMul"]})
    assert not refused({}, quantized)
    assert not refused({}, recipe, back)


@needs_olive
@pytest.mark.parametrize("name", ["OnnxBlockWiseRtnQuantization", "OnnxHqqQuantization"])
def test_the_refused_passes_do_break_the_folder_and_the_workaround_helps(
    plain: dict[str, Path], tmp_path: Path, name: str
) -> None:
    found = {}
    cases: dict[str, list[str]] = {"broken": [], "mended": ["/lm_head/MatMul"]}
    if name != "OnnxHqqQuantization":  # its other workaround is in the exported workflow below
        del cases["mended"]
    for case, excluded in cases.items():
        scratch = tmp_path / case
        (scratch / "model").mkdir(parents=True)
        planned = [PlannedPass("here", name, {"nodes_to_exclude": excluded})]
        made = run_passes(planned, "cpu", plain["none"], scratch, 300, lambda line: None)
        found[case] = [problem.found for problem in interface_problems(plain["none"], made.parent)]
    assert found["broken"] == [
        "After Olive the model lacks the output logits; it has logits_Q4 instead."
    ]
    assert not found.get("mended")


def test_a_workflow_file_is_read_for_its_passes(tmp_path: Path) -> None:
    path = tmp_path / "flow.json"
    values: dict[str, Any] = {
        "input_model": {"type": "HfModel", "model_path": "somewhere/else"},
        "passes": {
            "half": {"type": "OnnxFloatToFloat16", "keep_io_types": True},
            "names": [{"type": "OnnxIODataTypeConverter", "config": {"name_pattern": "logits"}}],
        },
        "output_dir": "/elsewhere",
    }
    path.write_text(json.dumps(values))
    assert read_workflow(path) == [
        PlannedPass("flow.json, pass 'half'", "OnnxFloatToFloat16", {"keep_io_types": True}),
        PlannedPass(
            "flow.json, pass 'names'", "OnnxIODataTypeConverter", {"name_pattern": "logits"}
        ),
    ]
    values["engine"] = {"search_strategy": {"sampler": "tpe"}}
    values["data_configs"] = [{"name": "wiki"}]
    values["passes"]["many"] = [{"type": "A"}, {"type": "B"}]
    path.write_text(json.dumps(values))
    with pytest.raises(ConvertError) as caught:
        read_workflow(path)
    assert [problem.headline for problem in caught.value.problems] == [
        "flow.json has search_strategy.",
        "flow.json has data_configs.",
        "flow.json: The pass 'many' is not one pass with a type.",
    ]
    both = OliveConfig(passes=[OlivePassConfig("A")], workflow=str(path))
    with pytest.raises(ConvertError, match=r"both olive\.passes and olive\.workflow"):
        planned_passes(both)
    for content in ("passes: [unclosed", "- a list", "passes: {}"):
        path.write_text(content)
        with pytest.raises(ConvertError):
            read_workflow(path)
    with pytest.raises(ConvertError, match="Cannot read"):
        read_workflow(tmp_path / "absent.yaml")


@needs_olive
def test_an_exported_workflow_gives_the_recipes_matrices(
    plain: dict[str, Path], tmp_path: Path
) -> None:
    flow = tmp_path / "flow.yaml"
    words = ["recipe=demo", "quant=rtn", "--input", str(plain["none"]), "--to", str(flow)]
    assert command(["olive-config", *words]) == 0
    done = subprocess.run(
        [sys.executable, "-m", "olive", "run", "--config", str(flow)],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    theirs, ours = tmp_path / "demo-olive", plain["rtn"]
    assert not list(interface_problems(ours, theirs))
    matrices = {}
    for folder in (theirs, ours):
        matrices[folder] = {
            node.name.partition("_Q")[0]: [
                np.asarray(value.const_value.numpy()).tobytes()
                for value in node.inputs[1:]
                if value is not None and value.const_value is not None
            ]
            for node in graph_of(folder)
            if node.op_type == "MatMulNBits" and node.name
        }
    assert len(matrices[ours]) == 26
    assert matrices[theirs] == matrices[ours]
    tables = [
        next(node for node in graph_of(folder) if node.op_type == "GatherBlockQuantized")
        for folder in (theirs, ours)
    ]
    scales = [table.inputs[2].const_value.numpy() for table in tables]  # type: ignore[union-attr]
    assert np.array_equal(scales[0], scales[1])  # the codes differ in ties, as the file's head says
    assert (theirs / "genai_config.json").is_file()


def test_a_recipe_without_work_for_olive_has_no_workflow(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert command(["olive-config", "recipe=demo", "quant=none"]) == 1
    assert "nothing that Olive could do" in capsys.readouterr().err


# No telemetry, no stray files


@needs_olive
def test_olive_leaves_nothing_in_the_users_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, plain: dict[str, Path]
) -> None:
    home, here, scratch = (tmp_path / name for name in ("home", "here", "scratch"))
    for folder in (home, here, scratch):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ("CI", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(here)
    before = sorted(plain["rtn"].iterdir())
    planned = [PlannedPass("here", "MatMulNBitsToQDQ", {})]
    run_passes(planned, "cpu", plain["rtn"], scratch, 300, lambda line: None)
    assert list(home.rglob("*")) == [] and list(here.iterdir()) == []
    assert sorted(plain["rtn"].iterdir()) == before


def test_the_worker_is_told_to_keep_quiet(tmp_path: Path) -> None:
    found = environment(tmp_path)
    assert (found["CI"], found["ORT_DISABLE_TELEMETRY"]) == ("1", "1")
    assert found["HF_HUB_OFFLINE"] == "1"
    assert found["PATH"] == os.environ["PATH"]


# An Olive that is missing, old, or misbehaves

STUB = {
    "__init__.py": "",
    "olive_config.json": json.dumps(
        {"passes": {"Stub": {"module_path": "olive.passes.onnx.stub.Stub"}}}
    ),
    "hardware.py": "class AcceleratorSpec:\n    def __init__(self, **_): pass\n",
    "model.py": """
class ONNXModelHandler:
    def __init__(self, folder, onnx_file_name=None):
        import os
        self.model_path = os.path.join(folder, onnx_file_name)
""",
    "package_config.py": """
class ONNXModelHandler: pass
class Module: module_dependencies = []
class Schema:
    @staticmethod
    def model_validate(values): return values
class Stub:
    def _run_for_config(self, model: ONNXModelHandler, config, path): ...
    @classmethod
    def get_config_class(cls, spec, disable): return Schema, {"mode": None}
    @classmethod
    def generate_config(cls, spec, config, disable_search): return config
class OlivePackageConfig:
    @staticmethod
    def load_default_config(): return OlivePackageConfig()
    def get_pass_module_config(self, name): return Module
    def import_pass_module(self, name): return Stub
""",
    "passes/__init__.py": "",
    "passes/olive_pass.py": """
import os, pathlib, shutil, sys, time
class Pass:
    def __init__(self, mode): self.mode = mode
    def run(self, model, out):
        folder, source = pathlib.Path(out), pathlib.Path(model.model_path).parent
        folder.mkdir(parents=True)
        print("working on", self.mode)
        if self.mode == "fails":
            raise RuntimeError("no such kernel")
        if self.mode == "dies":
            os._exit(7)
        if self.mode == "hangs":
            time.sleep(600)
        if self.mode == "another kind":
            return object()
        for name in ("model.onnx", "model.onnx.data"):
            shutil.copy(source / name, folder / name)
        if self.mode == "garbage":
            (folder / "model.onnx").write_bytes(b"not an onnx file" * 40)
        if self.mode == "damaged":
            data = bytearray((folder / "model.onnx.data").read_bytes())
            data[len(data) // 2 :] = bytes(len(data) - len(data) // 2)
            (folder / "model.onnx.data").write_bytes(data)
        if self.mode in ("renamed", "unloadable", "retyped", "reshaped"):
            import onnx_ir as ir
            made = ir.load(folder / "model.onnx")
            if self.mode == "renamed":
                made.graph.inputs[1].name = "mask"
            elif self.mode == "retyped":
                made.graph.inputs[2].dtype = ir.DataType.FLOAT16
            elif self.mode == "reshaped":
                made.graph.outputs[1].shape = ir.Shape(["batch_size", 7, "total", 32])
            else:
                for node in made.graph:
                    if node.op_type == "GroupQueryAttention":
                        node.op_type = "NoSuchOperator"
            ir.save(made, folder / "model.onnx")
        model.model_path = str(folder / "model.onnx")
        return model
def create_pass_from_dict(kind, config, disable_search, accelerator_spec=None):
    return Pass(config["mode"])
""",
}


@pytest.fixture
def stub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `olive` of ours in front of the real one, here and in the worker."""
    for name, content in STUB.items():
        path = tmp_path / "stub" / "olive" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.syspath_prepend(str(tmp_path / "stub"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"))
    monkeypatch.setattr("converter.olive.process.olive_version", lambda: "0.13.0")
    monkeypatch.setattr("passes.olive.olive_version", lambda: "0.13.0")


@pytest.fixture
def earlier(plain: dict[str, Path], tmp_path: Path) -> Iterator[Path]:
    """An output from before, which must come out of the test as it went in."""
    output = tmp_path / "results" / "out"
    output.mkdir(parents=True)
    for path in plain["none"].iterdir():
        (output / path.name).write_bytes(path.read_bytes())
    content = {path.name: path.read_bytes() for path in output.iterdir()}
    yield output
    assert {path.name: path.read_bytes() for path in output.iterdir()} == content
    assert [path.name for path in output.parent.iterdir()] == ["out"]


def run_stub(output: Path, mode: str, **settings: Any) -> None:
    recipe = compose_recipe(
        ["recipe=demo", "quant=none", "verify=none", f"output={output}", "overwrite=true"]
    )
    recipe.olive = OliveConfig(passes=[OlivePassConfig("Stub", {"mode": mode})], **settings)
    run_recipe(recipe, make_passes(recipe.passes))


FAILURES = {
    "fails": ("olive.passes[0] (Stub): RuntimeError: no such kernel", "working on fails"),
    "dies": ("ended with code 7 without an answer", "working on dies"),
    "another kind": ("the result is a object, not one ONNX model", ""),
    "garbage": ("What Olive returned is not an ONNX model", ""),
    "damaged": ("After Olive the model differs", "at most 0.001 nats"),
    "renamed": ("lacks the input attention_mask; it has mask instead", "genai_config.json names"),
    "retyped": ("caches have the types FLOAT, FLOAT16", "one type"),
    "reshaped": ("present.0.key has the shape [batch_size,7,total,32]", "as before"),
    "unloadable": ("onnxruntime-genai cannot run what Olive returned", "NoSuchOperator"),
}


@pytest.mark.usefixtures("stub")
@pytest.mark.parametrize("mode", FAILURES)
def test_a_failure_is_told_and_changes_nothing(earlier: Path, mode: str) -> None:
    with pytest.raises(ConvertError) as caught:
        run_stub(earlier, mode)
    text = str(caught.value)
    for expected in FAILURES[mode]:
        assert expected in text, text
    assert all(problem.remedy for problem in caught.value.problems)


@pytest.mark.usefixtures("stub")
def test_olive_is_stopped_when_its_time_is_over(earlier: Path) -> None:
    with pytest.raises(ConvertError, match=r"Olive was stopped after 2 s") as caught:
        run_stub(earlier, "hangs", timeout=2.0)
    assert "set olive.timeout to more seconds" in str(caught.value)


@pytest.mark.usefixtures("stub")
def test_a_pass_that_changes_nothing_leaves_the_model_as_it_was(
    plain: dict[str, Path], tmp_path: Path
) -> None:
    run_stub(tmp_path / "same", "copies")
    lock = json.loads((tmp_path / "same" / "convert.lock.json").read_text())
    facts = lock["facts"]["olive"]
    assert (facts["mean_kld"], facts["same_tokens"]) == (0.0, facts["steps"])
    assert lock["olive"] == [{"type": "Stub", "config": {"mode": "copies"}}]


def test_a_missing_or_old_olive_is_said_before_any_work(
    earlier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, expected in ((None, "Olive is not installed"), ("0.9.3", "olive-ai 0.9.3 is")):
        monkeypatch.setattr("converter.olive.process.olive_version", lambda found=version: found)
        with pytest.raises(ConvertError, match=expected) as caught:
            run_stub(earlier, "copies")
        assert "pip install 'convert-genai[olive]'" in str(caught.value)


def test_an_olive_that_cannot_be_imported_is_said_with_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "stub" / "olive").mkdir(parents=True)
    (tmp_path / "stub" / "olive" / "__init__.py").write_text("import requests_of_olive\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stub"))
    with pytest.raises(ConvertError, match="No module named 'requests_of_olive'") as caught:
        check_passes([PlannedPass("here", "Stub", {})], "cpu")
    assert "pip install 'convert-genai[olive]'" in str(caught.value)


@pytest.mark.usefixtures("stub")
def test_what_olive_prints_is_shown_once(tmp_path: Path, plain: dict[str, Path]) -> None:
    said: list[str] = []
    planned = [PlannedPass("here", "Stub", {"mode": "copies"})] * 2
    run_passes(planned, "cpu", plain["none"], tmp_path, 60, said.append)
    assert said == ["1/2 Stub", "working on copies", "2/2 Stub", "working on copies"]


def test_without_passes_the_slot_is_off(tmp_path: Path) -> None:
    assert not Olive().enabled(compose_recipe(["recipe=demo"]))
    recipe = compose_recipe(["recipe=demo", "olive=evaluate"])
    assert Olive().enabled(recipe)
    run = Run(recipe, Staging.nowhere())
    assert run.facts == {}
    with pytest.raises(ConvertError):
        ask({"kind": "unknown"}, tmp_path, 60)

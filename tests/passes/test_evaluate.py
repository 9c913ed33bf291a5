"""evaluate on the demo model, against transformers' own model and onnxruntime used by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaForCausalLM

from converter.cli.compose import compose_recipe
from converter.engine.execution import check, run_recipe
from converter.engine.registry import make_passes
from converter.errors import ConvertError
from converter.evaluation import reference_logits
from converter.evaluation.folder_evaluation import folder_chunks
from converter.evaluation.reference_logits import reference_disk, stored_reference
from converter.model.reference import llama_config
from converter.recipe.schema import EvaluateConfig
from converter.storage.cache import Cache
from converter.text.texts import EvaluationChunks
from passes import evaluate

FP32 = ("quant=none", "target.accuracy_level=0")
SHORT = ("evaluate=standard", "evaluate.n_ctx=128", "evaluate.max_chunks=4", "verify=none")
FIRST = 64
"""The first scored position of a chunk of 128 tokens."""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("CONVERT_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def convert(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Convert the demo with a short evaluation; the output folder."""

    def run(*words: str) -> Path:
        output = tmp_path_factory.mktemp("folders") / "demo"
        recipe = compose_recipe(["recipe=demo", f"output={output}", *SHORT, *words])
        return run_recipe(recipe, make_passes(recipe.passes))

    return run


@pytest.fixture(scope="module")
def int4(convert: Callable[..., Path]) -> Path:
    """int4 with the last token's logits only, as folders ship."""
    return convert("graph.last_token_logits=true")


@pytest.fixture(scope="module")
def decoder() -> Any:
    recipe = compose_recipe(["recipe=demo"])
    return check(recipe, make_passes(["load", "layout"]), None)


@pytest.fixture(scope="module")
def llama(decoder: Any) -> Any:
    """transformers' whole model on the demo's weights, float32."""
    model = LlamaForCausalLM(llama_config(decoder.architecture)).eval()
    place = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
    state = {}
    for name, weight in decoder.weights.items():
        layer, _, leaf = name.rpartition(".")
        part = "" if leaf.endswith("norm") else "self_attn."
        part = "mlp." if leaf.startswith(("gate", "up", "down")) else part
        leaf = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}.get(
            leaf, leaf
        )
        full = f"model.{layer}.{part}{leaf}" if layer else place[name]
        state[f"{full}.weight"] = weight.read().float()
    model.load_state_dict(state)
    return model


@pytest.fixture(scope="module")
def chunks(int4: Path) -> EvaluationChunks:
    return folder_chunks(int4, EvaluateConfig(n_ctx=128, max_chunks=4))


def full_forward(llama: Any, chunks: EvaluationChunks) -> torch.Tensor:
    """float64 log-probabilities (chunk, scored position, vocab) of one ordinary forward."""
    with torch.no_grad():
        logits = llama(torch.from_numpy(chunks.input_ids)).logits
    scored: torch.Tensor = logits[:, FIRST:127].double().log_softmax(-1)
    return scored


def runtime_logits(folder: Path, chunks: EvaluationChunks) -> torch.Tensor:
    """Logits of a folder whose graph gives all of them, by onnxruntime alone."""
    session = onnxruntime.InferenceSession(
        str(folder / "model.onnx"), providers=["CPUExecutionProvider"]
    )
    rows = []
    for row in chunks.input_ids:
        feeds = {
            item.name: np.zeros((1, item.shape[1], 0, item.shape[3]), np.float32)
            for item in session.get_inputs()
            if item.name.startswith("past")
        }
        feeds |= {"input_ids": row[None], "attention_mask": np.ones_like(row)[None]}
        rows.append(session.run(["logits"], feeds)[0][0])
    return torch.from_numpy(np.stack(rows))


def report(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "report" / "evaluate.json").read_text())
    return content


@pytest.mark.slow
def test_chunks_are_the_text_in_order_with_bos_in_front(int4: Path, chunks: Any) -> None:
    ids = chunks.input_ids
    assert ids.shape == (4, 128) and chunks.first == FIRST
    assert (ids[:, 0] == 1).all()
    text = Tokenizer.from_file(str(int4 / "tokenizer.json")).decode(ids[0, 1:].tolist())
    everything = "\n".join(
        path.read_text("utf-8")
        for path in Path(evaluate.__file__).parents[1].glob("converter/data/text/evaluation/*")
    )
    assert "<|im_start|>" not in text  # a chat, rendered and read as its special tokens
    assert text.split("\n")[1][:30] in everything


@pytest.mark.slow
def test_a_float_folder_is_the_reference(convert: Callable[..., Path]) -> None:
    found = report(convert(*FP32))
    assert 0 <= found["mean_kld"] < 1e-6
    assert found["top1_agreement"] == 1.0
    assert found["perplexity"] == pytest.approx(found["perplexity_reference"], rel=1e-5)
    assert found["tokens"] == 4 * 63


@pytest.mark.slow
def test_int4_equals_a_direct_computation(
    convert: Callable[..., Path], int4: Path, llama: Any, chunks: EvaluationChunks
) -> None:
    logits = runtime_logits(convert("graph.last_token_logits=false"), chunks)
    log_q = logits[:, FIRST:127].double().log_softmax(-1).flatten(0, 1)
    log_p = full_forward(llama, chunks).flatten(0, 1)
    klds = functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1)
    following = torch.from_numpy(chunks.input_ids[:, FIRST + 1 :]).flatten()
    found = report(int4)
    assert found["mean_kld"] == pytest.approx(float(klds.mean()), rel=1e-5)
    assert found["mean_kld_error"] == pytest.approx(float(klds.std() / 252**0.5), rel=1e-4)
    assert found["kld_p99"] == pytest.approx(float(klds.quantile(0.99)), rel=1e-4)
    agreement = (log_q.argmax(-1) == log_p.argmax(-1)).double().mean()
    assert found["top1_agreement"] == pytest.approx(float(agreement), abs=1e-12)
    for name, logs in (("perplexity", log_q), ("perplexity_reference", log_p)):
        expected = functional.nll_loss(logs, following).exp()
        assert found[name] == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("head_bytes", [2**28, 0])  # lm_head for several chunks, and for each
def test_the_streamed_reference_equals_one_full_forward(
    head_bytes: int,
    decoder: Any,
    llama: Any,
    chunks: EvaluationChunks,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reference_logits, "HEAD_BYTES", head_bytes)
    found = reference_logits.stored_reference(decoder, chunks, Cache(tmp_path), lambda *_: None)
    expected = full_forward(llama, chunks)
    for number in range(4):
        rows = found.chunk(number)
        # The file keeps 16 bits of each logit; the next token's probability is kept in full.
        error = rows.logits.double().log_softmax(-1) - expected[number]
        assert error.abs().max() < 1e-3
        following = torch.from_numpy(chunks.next_tokens[number])
        assert torch.allclose(
            rows.nll.double(), functional.nll_loss(expected[number], following, reduction="none"),
            atol=1e-5,
        )  # fmt: skip
        assert torch.equal(rows.top, expected[number].argmax(-1))


@pytest.mark.slow
def test_jobs_of_one_source_share_the_reference(
    convert: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = []

    def counted(path: Path, *rest: Any) -> None:
        made.append(path)
        compute(path, *rest)

    compute = reference_logits.compute_reference
    monkeypatch.setattr(reference_logits, "compute_reference", counted)
    monkeypatch.setenv("CONVERT_CACHE", str(tmp_path / "cache"))
    first = report(convert("quant.block_size=32", "evaluate.max_chunks=2"))
    second = report(convert("quant.block_size=64", "evaluate.max_chunks=2"))
    assert len(made) == 1
    assert first["reference"] == second["reference"]
    assert first["mean_kld"] != second["mean_kld"]
    other = report(convert("evaluate.max_chunks=3"))
    assert len(made) == 2 and other["reference"] != first["reference"]


def test_the_report_holds_figures_and_picture(int4: Path) -> None:
    found = report(int4)
    assert found["statistics"]["kld"]["value"] == found["mean_kld"]
    assert (int4 / "report" / "kld.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in (int4 / "report").iterdir()} == {"evaluate.json", "kld.png"}
    facts = json.loads((int4 / "convert.lock.json").read_text())["facts"]["evaluate"]
    assert facts["mean_kld"] == found["mean_kld"]
    assert all(isinstance(value, (int, float, str)) for value in facts.values())


def test_a_folder_above_the_limit_is_not_published(tmp_path: Path) -> None:
    output = tmp_path / "out" / "demo"
    words = ["recipe=demo", f"output={output}", *SHORT, "evaluate.max_kld=0.0001"]
    recipe = compose_recipe(words)
    with pytest.raises(ConvertError) as raised:
        run_recipe(recipe, make_passes(recipe.passes))
    (problem,) = raised.value.problems
    assert "mean KL divergence" in problem.found and "±" in problem.found
    assert "0.0001" in problem.expected
    assert "evaluate.max_kld" in problem.remedy
    assert list(output.parent.iterdir()) == []


@pytest.mark.slow
def test_a_folder_within_the_limit_is_published(convert: Callable[..., Path]) -> None:
    assert (convert(*FP32, "evaluate.max_kld=1e-6") / "report").is_dir()


def problems_of(*words: str, **settings: Any) -> str:
    recipe = compose_recipe(["recipe=demo", *SHORT, *words])
    for name, value in settings.items():
        setattr(recipe.evaluate, name, value)
    decoder = check(recipe, make_passes(["load", "layout"]), None)
    return "\n".join(map(str, evaluate.Evaluate().requires(recipe, decoder)))


@pytest.mark.slow
def test_problems_are_found_before_any_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert problems_of() == ""
    assert "1024" in problems_of("evaluate.n_ctx=2048")
    assert "no text at" in problems_of(text=str(tmp_path / "absent.txt"))
    (tmp_path / "empty.txt").write_text("")
    assert "is empty" in problems_of(text=str(tmp_path / "empty.txt"))
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    assert "not UTF-8" in problems_of(text=str(tmp_path / "latin.txt"))
    synthetic = problems_of("source=synthetic", "model=internlm2_1_8b")
    assert "no tokenizer" in synthetic
    (tmp_path / "short.txt").write_text("Once upon a time.\n")
    assert "tokens" in problems_of(text=str(tmp_path / "short.txt"))
    chats = tmp_path / "chats.jsonl"
    chats.write_text('{"messages": [{"role": "assistant", "content": "Once"}]}\n' * 2)
    monkeypatch.setattr("converter.tokenizer.runtime_tokenizer.RuntimeTokenizer.render", refuse)
    assert (
        "chats.jsonl, line 1 and 1 more: the chat template refuses it: take turns"
        in problems_of(text=str(chats))
    )
    monkeypatch.setattr("converter.runtime.session.find_spec", lambda name: None)
    assert "onnxruntime is not installed" in problems_of()


def refuse(*arguments: Any, **options: Any) -> str:
    raise RuntimeError("take turns")


@pytest.mark.slow
def test_the_reference_takes_the_disk_that_was_said(
    decoder: Any, chunks: EvaluationChunks, tmp_path: Path
) -> None:
    recipe, cache = compose_recipe(["recipe=demo", *SHORT]), Cache(tmp_path)
    count, n_ctx = chunks.input_ids.shape
    needed = partial(reference_disk, recipe.evaluate, decoder.architecture, count)
    stored_reference(decoder, chunks, cache, lambda *_: None)
    (entry,) = cache.entries()
    states = count * n_ctx * decoder.architecture.hidden_size * 4
    assert needed([]) == pytest.approx(entry.nbytes + states, rel=0.01)
    assert needed(cache.entries_of(decoder.checkpoint)) == 0


@pytest.mark.parametrize(
    "word", ["evaluate.max_kld=0.1", "evaluate.n_ctx=2", "evaluate.max_chunks=0"]
)
def test_settings_that_mean_nothing_are_refused(word: str) -> None:
    with pytest.raises(ConvertError, match=word.partition("=")[0]):
        compose_recipe(["recipe=demo", word])


def test_the_pass_is_left_out_unless_asked_for() -> None:
    assert not evaluate.Evaluate().enabled(compose_recipe(["recipe=demo"]))
    assert evaluate.Evaluate().enabled(compose_recipe(["recipe=demo", *SHORT]))


def test_a_broken_model_is_named(int4: Path, tmp_path: Path, chunks: EvaluationChunks) -> None:
    from converter.evaluation.runtime_logits import folder_logits

    with pytest.raises(ConvertError, match=r"has no model\.onnx"):
        next(folder_logits(tmp_path, chunks.input_ids))
    (tmp_path / "model.onnx").write_bytes((int4 / "model.onnx").read_bytes())
    with pytest.raises(ConvertError, match="cannot load"):
        next(folder_logits(tmp_path, chunks.input_ids))

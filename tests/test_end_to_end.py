"""From the built-in demo to a model that speaks, compared with transformers token for token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from oracle import llama_of

from converter.cli.main import main
from converter.sources.config import demo_folder
from converter.sources.local import open_local

pytestmark = pytest.mark.slow

og = pytest.importorskip("onnxruntime_genai")

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The demo as fp32 and as int4, converted as a user would."""
    place = tmp_path_factory.mktemp("demo")
    for name, words in {"fp32": ["quant=none"], "int4": []}.items():
        assert main(["recipe=demo", f"output='{place / name}'", *words]) == 0
    return {name: place / name for name in ("fp32", "int4")}


def stream_text(folder: Path, prompt: str, max_length: int) -> tuple[str, list[int]]:
    """Text and tokens that onnxruntime-genai streams greedily."""
    model = og.Model(str(folder))
    tokenizer = og.Tokenizer(model)
    stream = tokenizer.create_stream()
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=max_length)
    generator = og.Generator(model, parameters)
    generator.append_tokens([tokenizer.bos_token_id, *tokenizer.encode(prompt)])
    text, tokens = "", []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
        text += stream.decode(tokens[-1])
    return text, tokens


def test_greedy_output_equals_transformers_for_200_tokens(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    endless = tmp_path / "endless"  # the same folder, without stop tokens
    endless.mkdir()
    for path in folders["fp32"].iterdir():
        if path.is_file():
            (endless / path.name).hardlink_to(path)
    config = json.loads((endless / "genai_config.json").read_text())
    config["model"]["eos_token_id"] = [0]
    (endless / "genai_config.json").unlink()
    (endless / "genai_config.json").write_text(json.dumps(config))

    tokenizer = og.Tokenizer(og.Model(str(endless)))
    prompt = [tokenizer.bos_token_id, *tokenizer.encode(PROMPT).tolist()]
    _, found = stream_text(endless, PROMPT, len(prompt) + 200)

    model = llama_of(open_local(demo_folder()))
    ids = torch.tensor([prompt])
    with torch.no_grad():
        for _ in range(200):
            ids = torch.cat([ids, model(ids).logits[:, -1:].argmax(-1)], dim=1)
    assert found == ids[0, len(prompt) :].tolist()


def test_the_int4_demo_tells_a_story_and_stops(folders: dict[str, Path]) -> None:
    text, tokens = stream_text(folders["int4"], PROMPT, 400)
    config = json.loads((folders["int4"] / "genai_config.json").read_text())
    assert tokens[-1] in config["model"]["eos_token_id"]
    assert len(text.split()) > 40
    assert text.count(".") > 3


def test_a_chat_answer_stops_at_im_end(folders: dict[str, Path]) -> None:
    model = og.Model(str(folders["int4"]))
    tokenizer = og.Tokenizer(model)
    messages = '[{"role": "user", "content": "Tell me a story about a fox."}]'
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)
    parameters = og.GeneratorParams(model)
    parameters.set_search_options(max_length=400)
    generator = og.Generator(model, parameters)
    generator.append_tokens(tokenizer.encode(prompt))
    tokens: list[int] = []
    while not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    stop = tokenizer.encode("<|im_end|>").tolist()
    assert [tokens[-1]] == stop
    assert len(tokens) < 390


def test_folder_states_what_made_it(folders: dict[str, Path]) -> None:
    lock = json.loads((folders["int4"] / "convert.lock.json").read_text())
    assert lock["recipe"] == "demo"
    assert lock["facts"]["verify"]["relative_error"] < 0.1
    assert "model.safetensors" in lock["source"]["files"]

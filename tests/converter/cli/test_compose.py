"""From words to a recipe: every mistake in one error, also those inside of files, and odd names."""

from __future__ import annotations

from pathlib import Path

import pytest

from converter.cli.compose import compose_recipe, compose_values, prepare
from converter.cli.main import main
from converter.errors import ConvertError, Problem


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))


def problems(*words: str) -> tuple[Problem, ...]:
    with pytest.raises(ConvertError) as caught:
        compose_recipe(words)
    return caught.value.problems


def found(*words: str) -> list[str]:
    return [problem.headline for problem in problems(*words)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            "recipe=demo extra=1 quant.bitz=8 quant.bits=eight targe=cpu",
            ["'extra'", "'quant.bitz'", "'targe'", "quant.bits=eight."],
        ),
        ("recipe=demo quant.bits=5 quant.block_size=33", ["quant.bits=5.", "block_size=33."]),
        ("recipe=demo quant=awqq quant.block_size=33", ["Unknown quant", "block_size=33."]),
        ("recipe=dmeo quant.bits=eight threads=two", ["recipe 'dmeo'", "threads=two", "bits=eig"]),
        ("recipe=./none.yaml qant=rtn quant.bits=5", ["none.yaml does not", "'qant'", "bits=5."]),
        ("quant.bits=5 targe=cpu", ["No recipe", "'targe'", "quant.bits=5."]),
        ("recipe=demo foo source.revision=123 threads=0", ["'foo'", "the number 123", "threads=0"]),
    ],
)
def test_one_error_lists_what_is_unknown_mistyped_and_impossible(
    words: str, expected: list[str]
) -> None:
    said = found(*words.split())
    assert len(said) == len(expected)
    assert all(any(part in text for text in said) for part in expected), said


@pytest.mark.parametrize(
    "words",
    [
        "recipe=demo quant=gptqq quant.refine=true",
        "recipe=demo quant.roud=gptq quant.refine=true",
        "recipe=demo quant.round=gptqq quant.refine=true",
        "recipe=demo evaluate=standrd evaluate.max_kld=0.1",
        "recipe=demo evaluate.enabled=aye evaluate.max_kld=0.1",
        "recipe=demo calibration.tokens=many calibration.sequence_length=16384",
    ],
)
def test_what_only_a_wrong_word_decides_is_no_second_problem(words: str) -> None:
    """The value that stands in for the wrong one would clash; the right one may not."""
    assert len(found(*words.split())) == 1


def test_mistakes_in_a_file_name_the_file_and_the_nearest() -> None:
    Path("bad.yaml").write_text(
        "defaults: [demo, override /quant: awqq]\nquant: {blok: 3, bits: 5}\n"
    )
    said = problems("recipe=./bad.yaml", "targe=cpu")
    assert len(said) == 4
    listed = {item.headline.removeprefix(str(Path("bad.yaml").resolve())): item for item in said}
    assert "awq" in listed[": Unknown quant 'awqq'."].expected
    assert "override /quant: awq" in listed[": Unknown quant 'awqq'."].remedy
    assert "quant.block_size" in listed[": Unknown key 'quant.blok'."].expected
    assert ": quant.bits=5." in listed and "Unknown key 'targe'." in listed


def test_mistakes_in_a_file_come_with_what_its_values_make_impossible() -> None:
    Path("bad.yaml").write_text("defaults: [demo]\nquant: {bits: 5, block_size: 33}\n")
    said = found("recipe=./bad.yaml")
    assert said == [f"{Path('bad.yaml').resolve()}: quant.bits=5.", "quant.block_size=33."]


def test_every_file_that_a_recipe_builds_on_is_checked_at_once() -> None:
    for folder in ("recipe", "quant"):
        Path(folder).mkdir()
    Path("recipe/top.yaml").write_text("defaults: [base, override /verify: nonne]\n")
    Path("recipe/base.yaml").write_text("defaults: [dmeo, override /quant: mien]\nnmae: x\n")
    Path("quant/mine.yaml").write_text("defaults: [rtnn]\nbitz: 4\n")
    said = problems("recipe=recipe/top.yaml")
    assert [item.headline.partition(": ")[2] for item in said] == [
        "Unknown recipe 'dmeo'.",
        "Unknown quant 'mien'.",
        "Unknown verify 'nonne'.",
        "Unknown key 'nmae'.",
    ]
    assert "override /quant: mine`" in said[1].remedy
    Path("quant").rename("recipe/quant")
    Path("recipe/recipe").mkdir()
    Path("recipe/recipe/top.yaml").write_text("defaults: [demo, override /quant: mine]\n")
    texts = found("recipe=recipe/recipe/top.yaml")
    assert "quant/mine.yaml: Unknown quant 'rtnn'." in texts
    assert "quant/mine.yaml: Unknown key 'quant.bitz'." in texts


def test_references_to_other_keys_are_not_judged_before_they_are_composed() -> None:
    Path("own.yaml").write_text(
        "defaults: [demo]\ncalibration: {tokens: '${evaluate.n_ctx}', sequence_length: 64}\n"
    )
    assert compose_recipe(["recipe=./own.yaml"]).calibration.tokens == 512


def test_a_file_that_builds_on_itself_is_named() -> None:
    Path("recipe").mkdir()
    Path("recipe/me.yaml").write_text("defaults: [me]\n")
    (said,) = found("recipe=recipe/me.yaml")
    assert said.count("recipe/me.yaml") == 2 and "builds on itself" in said


@pytest.mark.parametrize(
    "path", ["ünï/räz.yaml", "it's/it's.yaml", "x=y.yaml", "a,b.yaml", "a (b) [c].yaml", "配.yml"]
)
@pytest.mark.parametrize("quote", ["", "'"])
def test_a_recipe_file_may_have_any_name(path: str, quote: str) -> None:
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).write_text("defaults: [demo]\nquant: {bits: 8}\n")
    values = compose_values([f"recipe={quote}{path}{quote}"])
    assert values["name"] == Path(path).stem and values["quant"]["bits"] == 8
    assert main(["show", path]) == main(["check", path]) == 0
    assert found(f"recipe={path}", "quant.bitz=1") == ["Unknown key 'quant.bitz'."]


def test_a_file_beside_others_keeps_its_name_and_finds_them() -> None:
    Path("own.yaml").write_text("defaults: [_file]\n")
    assert "_file" in found("recipe=./own.yaml")[0]  # the option's name is out of reach
    Path("recipe").mkdir()
    Path("recipe/räz.yaml").write_text("defaults: [base]\n")
    Path("recipe/base.yaml").write_text("defaults: [demo]\nquant: {bits: 8}\n")
    values = compose_values(["recipe=recipe/räz.yaml"])
    assert values["name"] == "räz" and values["quant"]["bits"] == 8
    assert "Unknown recipe" in found("recipe=local/_file")[0]


@pytest.mark.parametrize("text", ["dé", "it's", "a=b", "a (b", "/x/[1]/ü,é", "c:\\dir\\é", "é'\\"])
@pytest.mark.parametrize("key", ["output", "source.path", "evaluate.text", "verify.prompt"])
def test_a_text_needs_no_quotes_within_quotes(key: str, text: str) -> None:
    slot, _, name = key.rpartition(".")
    values = compose_values(["recipe=demo", f"{key}={text}"])
    assert (values[slot] if slot else values)[name] == text


def test_a_text_in_quotes_and_a_number_stay_what_they_were() -> None:
    assert compose_values(["recipe=demo", "output='a,b'"])["output"] == "a,b"
    assert compose_values(["recipe=demo", "output=null"])["output"] is None
    (said,) = problems("recipe=demo", "output='it's'")
    assert "cannot be read" in said.found
    (said,) = problems("recipe=demo", "quant.bits=[4")
    assert said.remedy == "write \"quant.bits='[4'\""


def test_a_sweeps_commas_part_values_also_where_they_cannot_be_read() -> None:
    with pytest.raises(ConvertError, match="cannot be read"):
        prepare(["recipe=demo", "evaluate.text=é.txt,b.txt"], sweep=True)
    prepared = prepare(["recipe=demo", "evaluate.text=é.txt", "quant.bits=4,8"], sweep=True)
    assert "evaluate.text='é.txt'" in prepared.words


@pytest.mark.parametrize("key", ["output", "source.path", "evaluate.text", "calibration.text"])
def test_an_empty_place_is_a_problem_of_its_own(key: str) -> None:
    assert found("recipe=demo", f"{key}=", "threads=0") == [
        f"{key} is empty; perhaps a variable of the shell is not set.",
        "threads=0.",
    ]


@pytest.mark.parametrize(
    ("words", "said", "remedy"),
    [
        (["model=internlm2_7b"], "model=internlm2_7b alone", "add export=NAME"),
        (["export=cpu_int4"], "export=cpu_int4 alone", "add model=NAME"),
        (["model=internlm2_7b", "export=cpu_int44"], "Unknown export", "write export=cpu_int4"),
        (["model=internlm3_7b", "export=cpu_int4"], "Unknown model", "write model=internlm2_7b"),
        (["recipe=internlm2_7b"], "it has no export", "write recipe=internlm2_7b_cpu_int4"),
        (["recipe=internlm2_7b_xyz"], "no export 'xyz'", "write recipe=internlm2_7b_cpu_int4"),
        (["recipe=cuda_int4_awq"], "it has no model", "write recipe=internlm2_7b_cuda_int4_awq"),
        (["recipe=gpt_cpu_int4"], "no model 'gpt'", "write recipe=internlm2_7b_cpu_int4"),
        (["recipe=internlm2_7b_chatt_dml_int4"], "Unk", "write recipe=internlm2_7b_chat_dml_int4"),
        (["recipe=internlm2_7b_cpu_in4"], "Unknown recipe", "write recipe=internlm2_7b_cpu_int4"),
    ],
    ids=str,
)
def test_what_is_missing_of_model_and_export_is_named(
    words: list[str], said: str, remedy: str
) -> None:
    (problem,) = problems(*words)
    assert said in problem.found and problem.remedy.startswith(remedy)


def test_an_export_beside_a_recipe_changes_what_it_is_for() -> None:
    recipe = compose_recipe(["recipe=demo", "export=cuda_bf16", "quant=rtn"])
    assert (recipe.name, recipe.source.kind) == ("demo_cuda_bf16", "demo")
    assert (recipe.target.float_type, recipe.quant.round) == ("bf16", "rtn")


def test_a_mapping_sets_keys_of_a_slot() -> None:
    quant = compose_values(["recipe=demo", "quant={bits: 8, block_size: 64}"])["quant"]
    assert (quant["round"], quant["bits"], quant["block_size"]) == ("rtn", 8, 64)


@pytest.mark.slow
def test_remedies_can_be_typed() -> None:
    (said,) = problems("demo")
    assert said.remedy == "write recipe=demo"
    Path("mine.yaml").write_text("defaults: [demo]\n")
    (said,) = problems("recipe=mine")
    assert said.remedy.split()[1] == "recipe=./mine.yaml"
    assert compose_recipe([said.remedy.split()[1]]).name == "mine"
    for choice in ("./rtn", "../rtn", "/tmp/rtn", "./quant.yaml"):
        assert "repo add" not in problems("recipe=demo", f"quant={choice}")[0].remedy
    assert "repo add acme URL" in problems("recipe=demo", "quant=acme/rtn")[0].remedy
    assert "Unknown recipe" in found(f"recipe={'x' * 300}")[0]

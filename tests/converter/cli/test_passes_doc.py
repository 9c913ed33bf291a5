from __future__ import annotations

import dataclasses
import inspect
import typing

from converter.cli.passes_doc import DOCUMENT, document, field_docs
from converter.engine.registry import BUILT_IN, describe_passes, make_passes
from converter.recipe.schema import OliveConfig, Recipe

DESCRIBED = {item.name: item for item in describe_passes() if item.name in BUILT_IN}


def test_the_document_is_what_the_code_says() -> None:
    written = DOCUMENT.read_text(encoding="utf-8")
    assert written == document(), "run `python -m converter.cli.passes_doc`"


def test_the_description_read_from_the_source_is_the_classes_own() -> None:
    assert list(DESCRIBED) == list(BUILT_IN)
    for item in make_passes(list(BUILT_IN)):
        told = DESCRIBED[item.name]
        assert told.takes == ("" if item.takes is type(None) else item.takes.__name__)
        assert told.gives == item.gives.__name__
        assert (told.slot, told.guarantees) == (item.slot, item.guarantees)
        assert told.purpose == inspect.getdoc(type(item))


def test_every_pass_names_a_slot_of_the_recipe_and_guarantees_something() -> None:
    slots = {
        field.name
        for field in dataclasses.fields(Recipe)
        if dataclasses.is_dataclass(typing.get_type_hints(Recipe)[field.name])
    }
    for name, item in DESCRIBED.items():
        assert item.slot in slots, name
        assert item.guarantees and item.purpose, name


def test_the_text_below_a_field_is_its_description() -> None:
    assert field_docs(OliveConfig)["timeout"] == "Seconds after which Olive is stopped."

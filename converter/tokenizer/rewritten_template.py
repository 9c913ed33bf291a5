"""The chat template that a folder gets, equal to the checkpoint's for transformers."""

from __future__ import annotations

from collections.abc import Mapping

from converter.tokenizer.chat_template import TOOL_TEMPLATE
from converter.tokenizer.comparison import Expected
from converter.tokenizer.conversations import SAMPLES, Sample
from converter.tokenizer.jinja import RenderError
from converter.tokenizer.template_expressions import UnwritableError
from converter.tokenizer.template_source import TemplateSource
from converter.tokenizer.template_writer import runtime_template

_IN_THE_RUNTIME = ("bos_token", "eos_token")
"""Names that onnxruntime-genai gives to a template."""


def rewritten_template(
    source: TemplateSource, names: Mapping[str, str], notes: list[str]
) -> str | None:
    """Write the template anew where onnxruntime-genai would render it otherwise.

    Args:
        source: the checkpoint's templates.
        names: texts of `bos_token` and the like.
        notes: receives what was done.
    """
    default = source.default
    if default is None or (default == TOOL_TEMPLATE and source.tool_use is None):
        return default
    missing = {key: text for key, text in names.items() if key not in _IN_THE_RUNTIME}
    try:
        written, changed = runtime_template(default, missing, source.tool_use)
    except UnwritableError as error:
        notes.append(f"the chat template could not be written anew: it has a {error}")
        return default
    if not changed:
        return written
    before = Expected(None, template=default, tool_use=source.tool_use, names=names)
    after = Expected(None, template=written, names=names)
    if any(_text(before, sample, g) != _text(after, sample, g) for sample in SAMPLES
           for g in (True, False)):  # fmt: skip
        notes.append("the chat template could not be written anew without another text")
        return default
    notes.append(
        "the chat template was written anew, so that onnxruntime-genai renders it as "
        "transformers does"
    )
    return written


def _text(template: Expected, sample: Sample, generation: bool) -> str | None:
    try:
        return template.render(sample, generation)
    except RenderError:
        return None

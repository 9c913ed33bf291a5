"""How byte-level vocabularies split a text before BPE, by llama.cpp's names of the ways.

A GGUF file has no pre-tokenizer; `tokenizer.ggml.pre` names one that llama.cpp knows. The regular
expressions are those of the published tokenizer.json files, which llama.cpp's follow.
"""

from __future__ import annotations

from dataclasses import dataclass

from converter.tokenizer.byte_level import GPT2_PATTERN

_ENDINGS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASES = rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]"
_SLASH_TAIL = r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"

LLAMA3 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}{_TAIL}"
QWEN2 = rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{_TAIL}"
TEKKEN = rf"{_CASES}*[{_LOWER}]+|{_CASES}+[{_LOWER}]*|\p{{N}}{_SLASH_TAIL}"
GPT4O = (
    rf"{_CASES}*[{_LOWER}]+{_ENDINGS}?|{_CASES}+[{_LOWER}]*{_ENDINGS}?|\p{{N}}{{1,3}}{_SLASH_TAIL}"
)
SEED = (
    rf"{_ENDINGS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}"
    r"| ?[^\s\p{L}\p{N}\r\n]+|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGIT = r"\p{N}"
_DEEPSEEK3 = (
    r"\p{N}{1,3}",
    "[一-龥぀-ゟ゠-ヿ]+",
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
)


@dataclass(frozen=True)
class PreTokenizer:
    """Regular expressions that split one after the other, and what goes with them."""

    patterns: tuple[str, ...]
    whole_tokens: bool = False
    """Whether a piece that is a token is taken as it is, whatever the merges."""
    add_bos: bool = False
    """Whether a text begins with the bos token where the file does not say."""


def _named(item: PreTokenizer, *names: str) -> dict[str, PreTokenizer]:
    return dict.fromkeys(names, item)


PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    **_named(PreTokenizer((GPT2_PATTERN,)), "gpt-2", "phi-2", "gigachat", "a.x-4.0", "mellum"),
    **_named(PreTokenizer((GPT2_PATTERN,)), "mpt", "olmo", "jais", "trillion", "exaone4"),
    **_named(PreTokenizer((GPT2_PATTERN,)), "granite-docling"),
    **_named(PreTokenizer((_DIGIT, GPT2_PATTERN)), "starcoder", "refact", "command-r", "smollm"),
    **_named(PreTokenizer((_DIGIT, GPT2_PATTERN)), "codeshell", "exaone", "minerva-7b", "mellum2"),
    **_named(
        PreTokenizer((LLAMA3,), whole_tokens=True, add_bos=True),
        *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    ),
    **_named(PreTokenizer((LLAMA3,)), "dbrx", "smaug-bpe", "chatglm-bpe"),
    **_named(PreTokenizer((LLAMA3,), whole_tokens=True), "glm4", "glm5"),
    **_named(PreTokenizer((QWEN2,)), "qwen2", "deepseek-r1-qwen", "kormo", "f2llmv2", "megrez"),
    **_named(PreTokenizer((QWEN2,)), "stablelm2", "hunyuan", "solar-open", "grok-2"),
    **_named(PreTokenizer((TEKKEN,), whole_tokens=True), "tekken"),
    **_named(PreTokenizer((GPT4O,)), "gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"),
    **_named(PreTokenizer((SEED,)), "seed-coder"),
    **_named(PreTokenizer(_DEEPSEEK3), "deepseek-v3", "hunyuan-dense"),
}
"""By `tokenizer.ggml.pre`."""

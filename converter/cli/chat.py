"""`convert chat FOLDER`: talk to a converted model in the terminal, streaming."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from converter.errors import Problem, together_with
from converter.runtime.chat import ChatOptions, run_chat
from converter.runtime.session import LARGEST_SEED, number_problems, read_configs


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the verb's words and options."""
    defaults = ChatOptions()
    parser.add_argument("folder", type=Path, help="a folder that convert has written")
    parser.add_argument("--system", help="the system prompt")
    parser.add_argument("--prompt", help="answer this once and stop")
    parser.add_argument(
        "--max-new-tokens", type=int, default=defaults.max_new_tokens, help="of one answer"
    )
    parser.add_argument(
        "--max-length", type=int, default=defaults.max_length, help="tokens of the conversation"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=defaults.temperature,
        help="0: the likeliest token",
    )
    parser.add_argument(
        "--top-p",
        type=float,
        default=defaults.top_p,
        help="share of tokens to draw from",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the draws")


def run(parsed: argparse.Namespace) -> int:
    """Run the verb."""
    options = ChatOptions(
        max_length=parsed.max_length,
        max_new_tokens=parsed.max_new_tokens,
        temperature=parsed.temperature,
        top_p=parsed.top_p,
        seed=parsed.seed,
    )
    with together_with(_problems(options)):
        read_configs(parsed.folder)
    return run_chat(parsed.folder, parsed.system, parsed.prompt, options)


def _problems(options: ChatOptions) -> Iterator[Problem]:
    yield from number_problems("--max-length", options.max_length, 2)
    yield from number_problems("--max-new-tokens", options.max_new_tokens, 1)
    yield from number_problems("--temperature", options.temperature, 0)
    yield from number_problems("--top-p", options.top_p, 0, 1)
    if options.seed is not None:
        yield from number_problems("--seed", options.seed, 0, LARGEST_SEED)

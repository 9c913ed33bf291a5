"""What the post_processor of a tokenizer.json puts before every text."""

from __future__ import annotations

import json
from typing import Any


def adds_token(post_processor: dict[str, Any], index: int) -> bool:
    """Whether it begins every text with the token `index`, as transformers encodes it.

    transformers 5 goes by the post_processor alone, and reads no `add_bos_token`.
    """
    from tokenizers import Tokenizer

    model = {"type": "BPE", "vocab": {"a": index + 1}, "merges": []}
    content = {"version": "1.0", "added_tokens": [], "post_processor": post_processor}
    tokenizer = Tokenizer.from_str(json.dumps({**content, "model": model}))
    return bool(tokenizer.encode("a").ids[:1] == [index])

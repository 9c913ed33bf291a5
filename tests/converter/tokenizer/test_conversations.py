"""The conversations that templates are compared on."""

from __future__ import annotations

import json

from converter.tokenizer.conversations import SAMPLES, TOOL_CALL


def test_every_sample_has_a_name_of_its_own_and_is_json() -> None:
    assert len({sample.name for sample in SAMPLES}) == len(SAMPLES) > 20
    assert all(json.loads(json.dumps(list(sample.messages))) for sample in SAMPLES)


def test_plain_ones_are_turns_of_user_and_assistant_only() -> None:
    plain = [sample for sample in SAMPLES if sample.plain]
    assert len(plain) > 3
    for sample in plain:
        roles = [message["role"] for message in sample.messages]
        assert roles == [("user", "assistant")[i % 2] for i in range(len(roles))]
        assert not sample.tools and all(set(m) == {"role", "content"} for m in sample.messages)


def test_there_are_system_messages_tools_and_their_results() -> None:
    roles = {message["role"] for sample in SAMPLES for message in sample.messages}
    assert roles == {"user", "assistant", "system", "tool"}
    assert any(sample.tools for sample in SAMPLES) and "tool_calls" in TOOL_CALL[-1]

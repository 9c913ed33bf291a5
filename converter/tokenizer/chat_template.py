"""The chat template of InternLM2, with the tool forms of its official chat format.

Source of the format: "Chat Format" in the InternLM repository (chat/chat_format.md).
"""

from __future__ import annotations

PUBLISHED_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""What the InternLM2 and 2.5 chat repositories publish: plain conversations only."""

# onnxruntime-genai rewrites the JSON schema of tools unless the template reads `tool.function`,
# so the tools are read that way and reach the model as the caller gave them.
_TOOLS_MESSAGE = (
    "{{ '<|im_start|>system name=<|plugin|>\n[' }}"
    "{% for tool in tools %}"
    "{{ (tool.function if tool.function is defined else tool) | tojson }}"
    "{% if not loop.last %}{{ ', ' }}{% endif %}"
    "{% endfor %}"
    "{{ ']<|im_end|>\n' }}"
)
_TOOL_CALL = (
    "{% set function = call.function if call.function is defined else call %}"
    "{% if function.name == 'interpreter' %}"
    "{{ '<|action_start|><|interpreter|>\n' + function.arguments + '<|action_end|>' }}"
    "{% else %}"
    "{{ '<|action_start|><|plugin|>\n{\"name\": ' + (function.name | tojson)"
    " + ', \"parameters\": ' }}"
    "{% if function.arguments is string %}{{ function.arguments }}"
    "{% else %}{{ function.arguments | tojson }}{% endif %}"
    "{{ '}<|action_end|>' }}"
    "{% endif %}"
)
TOOL_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if tools and loop.first and message['role'] != 'system' %}" + _TOOLS_MESSAGE + "{% endif %}"
    "{% if message['role'] == 'tool' %}{{ '<|im_start|>environment name=<|plugin|>' }}"
    "{% else %}{{ '<|im_start|>' + message['role'] }}"
    "{% if message['name'] is defined and message['name'] %}"
    "{% if message['name'] == 'plugin' %}{{ ' name=<|plugin|>' }}"
    "{% elif message['name'] == 'interpreter' %}{{ ' name=<|interpreter|>' }}"
    "{% else %}{{ ' name=' + message['name'] }}{% endif %}{% endif %}{% endif %}"
    "{{ '\n' }}"
    "{% if message['content'] %}{{ message['content'] }}{% endif %}"
    "{% if message['tool_calls'] is defined and message['tool_calls'] %}"
    "{% for call in message['tool_calls'] %}" + _TOOL_CALL + "{% endfor %}{% endif %}"
    "{{ '<|im_end|>' + '\n' }}"
    "{% if tools and loop.first and message['role'] == 'system' %}" + _TOOLS_MESSAGE + "{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Renders every conversation without tools byte for byte as `PUBLISHED_TEMPLATE` does.

Beyond it: a message's `name` (`plugin` and `interpreter` become their tokens, `file` stays),
the role `environment` and its OpenAI spelling `tool`, an assistant's `tool_calls`, and `tools`,
which become the system message `name=<|plugin|>` after the first system message.
"""

IM_END = "<|im_end|>"


def uses_im_end(template: str | None) -> bool:
    """Whether a chat template is of InternLM2's kind, whose turns end with `<|im_end|>`."""
    return template is not None and IM_END in template


def with_tool_forms(template: str) -> str:
    """The template to write for a checkpoint's `template`: extended only if it is the published."""
    return TOOL_TEMPLATE if template.strip() == PUBLISHED_TEMPLATE else template

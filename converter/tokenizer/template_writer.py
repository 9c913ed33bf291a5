"""A chat template written again, in what onnxruntime-genai's engine renders as Jinja does.

The engine (minja, in onnxruntime-extensions) neither trims blocks nor knows all of Jinja: `'x' in
text` is false there, `text[0]` empty, `dict not in` always true, and methods such as `replace` are
unknown. A template is parsed by Jinja itself and written from its syntax tree, each such form as an
equal one. What has no equal one is written as it is; the comparison finds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from jinja2 import nodes

from converter.tokenizer.jinja import environment
from converter.tokenizer.template_expressions import ExpressionWriter, literal, method_name

RAW_TOOLS = "{# the runtime gives tools as they are where it reads tool.function #}"
"""onnxruntime-genai flattens the JSON schema of tools unless a template holds `tool.function`."""


def runtime_template(
    source: str, names: Mapping[str, str], tool_use: str | None = None
) -> tuple[str, bool]:
    """The template for both runtimes, and whether it is another text than `source`.

    Args:
        source: a template that Jinja can read.
        names: texts of special tokens that the runtime does not give to templates.
        tool_use: a template for conversations with tools; None takes `source` for them.
    """
    tree = environment().parse(source)
    writer = _Writer(names)
    if tool_use is None:
        text = writer.body(tree.body)
        trims = tree != environment(trim=False).parse(source)
        written = text if writer.changed or trims or _is_misread(source) else source
    else:
        tools = writer.body(environment().parse(tool_use).body)
        default = writer.body(tree.body)
        written = "{% if tools %}" + tools + "{% else %}" + default + "{% endif %}"
    if "tools" in writer.read and "tool.function" not in written:
        written = RAW_TOOLS + written
    return written, written != source


class _Writer(ExpressionWriter):
    """Statements as text."""

    def body(self, statements: Sequence[nodes.Node]) -> str:
        return "".join(self.dispatch(node, "_write_") for node in statements)

    def _write_Output(self, node: nodes.Output) -> str:
        return "".join(
            _data(part.data)
            if isinstance(part, nodes.TemplateData)
            else "{{ " + self.expression(part) + " }}"
            for part in node.nodes
        )

    def _write_If(self, node: nodes.If) -> str:
        text = "{% if " + self.condition(node.test) + " %}" + self.body(node.body)
        for other in node.elif_:
            text += "{% elif " + self.condition(other.test) + " %}" + self.body(other.body)
        if node.else_:
            text += "{% else %}" + self.body(node.else_)
        return text + "{% endif %}"

    def _write_For(self, node: nodes.For) -> str:
        if isinstance(node.target, nodes.Name) and _root(node.iter) in ("messages", "tools"):
            self.mappings.add(node.target.name)
        head = "{% for " + self._loop(node)
        if node.test is not None:
            head += " if " + self.condition(node.test)
        text = head + (" recursive" if node.recursive else "") + " %}" + self.body(node.body)
        if node.else_:
            text += "{% else %}" + self.body(node.else_)
        return text + "{% endfor %}"

    def _loop(self, node: nodes.For) -> str:
        """`target in values`; the runtime has no `keys` and `values`."""
        target, values = self._target(node.target), node.iter
        method = method_name(values)
        if method in ("keys", "values") and isinstance(values, nodes.Call):
            self.changed = True
            assert isinstance(values.node, nodes.Getattr)
            mapping = self.expression(values.node.node)
            if method == "keys":
                return f"{target} in {mapping}"
            return f"_key, {target} in {mapping}.items()"
        return f"{target} in {self.expression(values)}"

    def _target(self, node: nodes.Node) -> str:
        if isinstance(node, nodes.Tuple):
            return ", ".join(self._target(item) for item in node.items)
        if isinstance(node, nodes.NSRef):
            return f"{node.name}.{node.attr}"
        assert isinstance(node, nodes.Name)
        return node.name

    def _write_Assign(self, node: nodes.Assign) -> str:
        if isinstance(node.target, nodes.Tuple) and isinstance(node.node, nodes.Tuple):
            self.changed = True
            pairs = zip(node.target.items, node.node.items, strict=False)
            return "".join(self._set(target, value) for target, value in pairs)
        return self._set(node.target, node.node)

    def _set(self, target: nodes.Node, value: nodes.Node) -> str:
        return "{% set " + self._target(target) + " = " + self.expression(value) + " %}"

    def _write_AssignBlock(self, node: nodes.AssignBlock) -> str:
        name = self._target(node.target)
        text = "{% set " + name + " %}" + self.body(node.body) + "{% endset %}"
        if node.filter is None:
            return text
        self.changed = True
        return text + "{% set " + name + " = " + self.filtered(node.filter, name) + " %}"

    def _write_FilterBlock(self, node: nodes.FilterBlock) -> str:
        self.changed = True
        text = "{% set _filtered %}" + self.body(node.body) + "{% endset %}"
        return text + "{{ " + self.filtered(node.filter, "_filtered") + " }}"

    def _write_With(self, node: nodes.With) -> str:
        """A loop over one value makes the scope that the runtime has no `with` for."""
        self.changed = True
        pairs = list(zip(node.targets, node.values, strict=True))
        loops = (
            "{% for " + self._target(target) + " in [" + self.expression(value) + "] %}"
            for target, value in pairs
        )
        return "".join(loops) + self.body(node.body) + "{% endfor %}" * len(pairs)

    def _write_Macro(self, node: nodes.Macro) -> str:
        plain = len(node.args) - len(node.defaults)
        words = [argument.name for argument in node.args[:plain]]
        for argument, default in zip(node.args[plain:], node.defaults, strict=True):
            words.append(f"{argument.name}={self.expression(default)}")
        head = "{% macro " + node.name + "(" + ", ".join(words) + ") %}"
        return head + self.body(node.body) + "{% endmacro %}"

    def _write_Block(self, node: nodes.Block) -> str:
        self.changed = True
        return self.body(node.body)

    def _write_Break(self, node: nodes.Node) -> str:
        return "{% break %}"

    def _write_Continue(self, node: nodes.Node) -> str:
        return "{% continue %}"


def _data(text: str) -> str:
    """Text between tags; as a literal where Jinja would trim it, or the runtime misread it."""
    if text.strip() == text and "{" not in text:
        return text
    return "{{ " + literal(text) + " }}"


def _root(node: nodes.Node) -> str | None:
    """The name that an expression such as `messages[1:]` begins with."""
    while isinstance(node, nodes.Getitem | nodes.Getattr | nodes.Filter):
        assert node.node is not None
        node = node.node
    return node.name if isinstance(node, nodes.Name) else None


_UNKNOWN_ESCAPE = re.compile(r"\\[^nrtbf'\"\\]")


def _is_misread(source: str) -> bool:
    """Whether the template is spelled in a way that the runtime misreads, whatever it says."""
    before = ""
    for _, kind, value in environment().lexer.tokeniter(source, None):
        spelled = (
            kind == "raw_begin"
            or (kind in ("block_begin", "block_end", "variable_begin") and "+" in value)
            or (kind == "string" and _UNKNOWN_ESCAPE.search(value) is not None)
            or (kind == "operator" and value in ")]}" and before == ",")
        )
        if spelled:
            return True
        before = before if kind == "whitespace" else value
    return False

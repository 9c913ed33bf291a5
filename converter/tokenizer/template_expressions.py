"""Expressions of a chat template, in what onnxruntime-genai's engine computes as Jinja does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import nodes

_COMPARES = {"eq": "==", "ne": "!=", "gt": ">", "gteq": ">=", "lt": "<", "lteq": "<="}
_SAME_TESTS = {
    "equalto": "==", "eq": "==", "sameas": "==", "==": "==", "ne": "!=", "!=": "!=", "gt": ">",
    "greaterthan": ">", ">": ">", "ge": ">=", ">=": ">=", "lt": "<", "lessthan": "<", "<": "<",
    "le": "<=", "<=": "<=",
}  # fmt: skip
_GIVEN_BY_TRANSFORMERS = ("tools", "documents")
"""Variables that are None where transformers has nothing to give, and undefined in the runtime."""


class ExpressionWriter:
    """Expressions as text; a compound one stands in parentheses.

    Args:
        names: texts of variables that the runtime does not give.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self.changed = False
        """Whether a form was replaced by an equal one."""
        self.read: set[str] = set()
        """Names of the variables that the template reads."""
        self._names = names
        self.mappings: set[str] = set()
        """Names that are known to be of mappings."""

    def dispatch(self, node: nodes.Node, prefix: str) -> str:
        method: Callable[[Any], str] | None = getattr(self, prefix + type(node).__name__, None)
        if method is None:
            raise UnwritableError(type(node).__name__)
        return method(node)

    def expression(self, node: nodes.Node) -> str:
        """The expression for its value."""
        return self.dispatch(node, "_say_")

    def condition(self, node: nodes.Node) -> str:
        """The expression for its truth alone."""
        if isinstance(node, nodes.And):
            return f"({self.condition(node.left)} and {self.condition(node.right)})"
        if isinstance(node, nodes.Or):
            return f"({self.condition(node.left)} or {self.condition(node.right)})"
        if isinstance(node, nodes.Not):
            return f"(not {self.condition(node.node)})"
        return self.expression(node)

    def _say_Const(self, node: nodes.Const) -> str:
        return literal(node.value)

    def _say_TemplateData(self, node: nodes.TemplateData) -> str:
        return literal(node.data)

    def _say_Name(self, node: nodes.Name) -> str:
        self.read.add(node.name)
        if node.name in self._names:
            self.changed = True
            return literal(self._names[node.name])
        return node.name

    def _say_List(self, node: nodes.List | nodes.Tuple) -> str:
        return "[" + ", ".join(self.expression(item) for item in node.items) + "]"

    _say_Tuple = _say_List

    def _say_Dict(self, node: nodes.Dict) -> str:
        pairs = (f"{self.expression(p.key)}: {self.expression(p.value)}" for p in node.items)
        return "{" + ", ".join(pairs) + "}"

    def _say_CondExpr(self, node: nodes.CondExpr) -> str:
        text = f"{self.expression(node.expr1)} if {self.condition(node.test)}"
        return f"({text})" if node.expr2 is None else f"({text} else {self.expression(node.expr2)})"

    def _say_And(self, node: nodes.And) -> str:
        """The runtime's `and` gives true or false, Jinja's one of its sides."""
        if _is_truth(node):
            return self.condition(node)
        self.changed = True
        left = self.expression(node.left)
        return f"({self.expression(node.right)} if {left} else {left})"

    def _say_Or(self, node: nodes.Or) -> str:
        return f"({self.expression(node.left)} or {self.expression(node.right)})"

    def _say_Not(self, node: nodes.Not) -> str:
        return self.condition(node)

    def _binary(self, node: nodes.BinExpr) -> str:
        return f"({self.expression(node.left)} {node.operator} {self.expression(node.right)})"

    _say_Add = _say_Sub = _say_Mul = _say_Div = _say_FloorDiv = _say_Mod = _say_Pow = _binary

    def _say_Neg(self, node: nodes.Neg) -> str:
        return f"(-{self.expression(node.node)})"

    def _say_Pos(self, node: nodes.Pos) -> str:
        return self.expression(node.node)

    def _say_Concat(self, node: nodes.Concat) -> str:
        return "(" + " ~ ".join(self.expression(item) for item in node.nodes) + ")"

    def _say_Compare(self, node: nodes.Compare) -> str:
        left, parts = node.expr, []
        self.changed |= len(node.ops) > 1
        for operand in node.ops:
            if operand.op in ("in", "notin"):
                parts.append(self._contains(left, operand.expr, operand.op == "notin"))
            else:
                sign = _COMPARES[operand.op]
                parts.append(f"({self.expression(left)} {sign} {self.expression(operand.expr)})")
            left = operand.expr
        return parts[0] if len(parts) == 1 else "(" + " and ".join(parts) + ")"

    def _contains(self, item: nodes.Expr, holder: nodes.Expr, negated: bool) -> str:
        """`item in holder`, which the runtime knows for lists and, without `not`, for mappings."""
        left, right = self.expression(item), self.expression(holder)
        if isinstance(holder, nodes.List | nodes.Tuple | nodes.Dict):
            return f"({left} {'not in' if negated else 'in'} {right})"
        text = f"({left} in {right})"
        if not (isinstance(holder, nodes.Name) and holder.name in self.mappings):
            self.changed = True
            text = f"(({right}.split({left}) | length > 1) if {right} is string else {text})"
        self.changed |= negated
        return f"(not {text})" if negated else text

    def _say_Getattr(self, node: nodes.Getattr) -> str:
        return f"{self._base(node.node)}.{node.attr}"

    def _say_Getitem(self, node: nodes.Getitem) -> str:
        index, piece = node.arg, _piece_of_split(node)
        if piece is not None:
            return self._split_once(*piece)
        if isinstance(index, nodes.Slice):
            return f"{self._base(node.node)}[{self._slice(index)}]"
        text = f"{self._base(node.node)}[{self.expression(index)}]"
        if not _may_be_character(node):
            return text
        self.changed = True
        base, start = self._base(node.node), _integer(index)
        assert start is not None
        part = f"{start}:" if start == -1 else f"{start}:{start + 1}"
        return f"({base}[{part}] if {base} is string else {text})"

    def _slice(self, index: nodes.Slice) -> str:
        start, stop = (
            "" if part is None else self.expression(part) for part in (index.start, index.stop)
        )
        step = "" if index.step is None else f":{self.expression(index.step)}"
        return f"{start}:{stop}{step}"

    def _base(self, node: nodes.Expr) -> str:
        """What an attribute, an item or a method is taken of."""
        if isinstance(node, nodes.Getitem) and _is_plain_item(node):
            return f"{self._base(node.node)}[{self.expression(node.arg)}]"
        text = self.expression(node)
        is_call = isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name)
        self.changed |= is_call
        return f"({text})" if is_call else text

    # --- calls ---

    def _say_Call(self, node: nodes.Call) -> str:
        if isinstance(node.node, nodes.Name) and node.node.name == "dict" and not node.args:
            self.changed = True
            pairs = (f"{literal(k.key)}: {self.expression(k.value)}" for k in node.kwargs)
            return "{" + ", ".join(pairs) + "}"
        if isinstance(node.node, nodes.Getattr):
            return self._method_call(node, node.node)
        return f"{self.expression(node.node)}({self._arguments(node)})"

    def _arguments(self, node: nodes.Call | nodes.Filter, skip: Sequence[str] = ()) -> str:
        words = [self.expression(argument) for argument in node.args]
        words += [f"{k.key}={self.expression(k.value)}" for k in node.kwargs if k.key not in skip]
        return ", ".join(words)

    def _method_call(self, node: nodes.Call, method: nodes.Getattr) -> str:
        text, arguments = self._base(method.node), node.args
        equal = self._equal_method(method.attr, text, arguments)
        if equal is not None:
            self.changed = True
            return equal
        return f"{text}.{method.attr}({self._arguments(node)})"

    def _equal_method(self, name: str, text: str, arguments: Sequence[nodes.Expr]) -> str | None:
        """A method that the runtime lacks, by others that it has; None where it has it."""
        words = [self.expression(argument) for argument in arguments]
        equal: str | None = None
        match name, words:
            case "replace", [old, new]:
                equal = f"({text}.split({old}) | join({new}))"
            case "lower", []:
                equal = f"({text} | lower)"
            case "join", [items]:
                equal = f"({items} | join({text}))"
            case "count", [part]:
                equal = f"(({text}.split({part}) | length) - 1)"
            case "removeprefix", [part]:
                equal = f"({text}[({part} | length):] if {text}.startswith({part}) else {text})"
            case "removesuffix", [part]:
                cut = f"{text}[:(({text} | length) - ({part} | length))]"
                equal = f"({cut} if {text}.endswith({part}) else {text})"
            case (("startswith" | "endswith"), [_]) if isinstance(arguments[0], nodes.Tuple):
                tried = (f"{text}.{name}({self.expression(a)})" for a in arguments[0].items)
                equal = "(" + " or ".join(tried) + ")"
        return equal

    def _split_once(self, text: nodes.Expr, mark: nodes.Expr, last: bool, right: bool) -> str:
        """`text.split(mark, 1)[…]`: the runtime's `split` takes no second argument."""
        self.changed = True
        whole = self._base(text)
        parts = f"{whole}.split({self.expression(mark)})"
        if last == right:
            return f"{parts}[{-1 if last else 0}]"
        rest = f"({parts}{'[1:]' if last else '[:-1]'} | join({self.expression(mark)}))"
        return f"({rest} if (({parts} | length) > 1) else {whole})"

    # --- filters and tests ---

    def _say_Filter(self, node: nodes.Filter) -> str:
        assert node.node is not None
        return self.filtered(node, self.expression(node.node))

    def filtered(self, node: nodes.Filter, text: str) -> str:
        equal = self._equal_filter(node, text)
        if equal is not None:
            self.changed = True
            return equal
        words = self._arguments(node, skip=("ensure_ascii",) if node.name == "tojson" else ())
        return f"({text} | {node.name}({words}))" if words else f"({text} | {node.name})"

    def _equal_filter(self, node: nodes.Filter, text: str) -> str | None:
        words = [self.expression(argument) for argument in node.args]
        equal: str | None = None
        match node.name, words:
            case "d", _:
                equal = f"({text} | default({self._arguments(node)}))"
            case "first", []:
                equal = f"({text}[0:1] if {text} is string else {text}[0])"
            case "reverse", []:
                equal = f"{text}[::-1]"
            case "trim", [characters]:
                equal = f"{text}.strip({characters})"
            case "replace", [old, new]:
                equal = f"({text}.split({old}) | join({new}))"
            case (("title" | "capitalize"), []):
                equal = f"{text}.{node.name}()"
            case "abs", []:
                equal = f"({text} if {text} >= 0 else (-{text}))"
            case "join", _ if any(k.key == "attribute" for k in node.kwargs):
                attribute = next(k.value for k in node.kwargs if k.key == "attribute")
                named = f"({text} | map(attribute={self.expression(attribute)}))"
                equal = f"({named} | join({words[0] if words else literal('')}))"
        return equal

    def _say_Test(self, node: nodes.Test) -> str:
        given = isinstance(node.node, nodes.Name) and node.node.name in _GIVEN_BY_TRANSFORMERS
        text = self.expression(node.node)
        equal = _given_test(node.name, text) if given else self._equal_test(node, text)
        if equal is not None:
            self.changed = True
            return equal
        return f"({text} is {node.name})"

    def _equal_test(self, node: nodes.Test, text: str) -> str | None:
        words = [self.expression(argument) for argument in node.args or ()]
        equal: str | None = None
        match node.name, words:
            case (("odd" | "even"), []):
                equal = f"(({text} % 2) == {int(node.name == 'odd')})"
            case "divisibleby", [number]:
                equal = f"(({text} % {number}) == 0)"
            case "in", [_]:
                equal = self._contains(node.node, node.args[0], negated=False)
            case "sequence", []:
                equal = f"(({text} is sequence) or ({text} is string) or ({text} is mapping))"
            case name, [other] if name in _SAME_TESTS:
                equal = f"({text} {_SAME_TESTS[name]} {other})"
        return equal


class UnwritableError(Exception):
    """A node of Jinja that has no form here, such as an import."""


def _given_test(name: str, text: str) -> str | None:
    """A test of what transformers always gives, if only as None."""
    missing = f"(({text} is not defined) or ({text} is none))"
    return {"defined": "true", "undefined": "false", "none": missing}.get(name)


_ESCAPES = {"\\": "\\\\", "'": "\\'", "\n": "\\n", "\r": "\\r", "\t": "\\t"}


def literal(value: Any) -> str:
    """A constant as both engines read it; of escapes the runtime knows a few only."""
    if isinstance(value, str):
        return "'" + "".join(_ESCAPES.get(character, character) for character in value) + "'"
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else (
        "none" if value is None else repr(value)
    )  # fmt: skip


def method_name(node: nodes.Node) -> str | None:
    """The method that a call names; None for anything else."""
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        return node.node.attr
    return None


def _is_truth(node: nodes.Node) -> bool:
    """Whether the value is true or false by itself."""
    if isinstance(node, nodes.And | nodes.Or):
        return _is_truth(node.left) and _is_truth(node.right)
    return isinstance(node, nodes.Compare | nodes.Not | nodes.Test) or (
        isinstance(node, nodes.Const) and isinstance(node.value, bool)
    )


def _integer(node: nodes.Node) -> int | None:
    """The number that `1` or `-1` says; None for anything else."""
    if isinstance(node, nodes.Neg):
        found = _integer(node.node)
        return None if found is None else -found
    return node.value if isinstance(node, nodes.Const) and type(node.value) is int else None


def _is_plain_item(node: nodes.Getitem) -> bool:
    return not isinstance(node.arg, nodes.Slice) and _piece_of_split(node) is None


def _may_be_character(node: nodes.Getitem) -> bool:
    """Whether `x[0]` can be a character of a text, which the runtime gives as nothing."""
    index, base = node.arg, node.node
    if isinstance(base, nodes.Getitem) and isinstance(base.arg, nodes.Slice):
        base = base.node
    known = method_name(base) in ("split", "items") or (
        isinstance(base, nodes.Name) and base.name.endswith(("messages", "tools"))
    )
    known = known or isinstance(base, nodes.List | nodes.Tuple)
    return _integer(index) is not None and not known


def _piece_of_split(node: nodes.Getitem) -> tuple[nodes.Expr, nodes.Expr, bool, bool] | None:
    """Text, mark, whether the last piece is meant, and whether the text is cut from the right."""
    call, index = node.node, node.arg
    name = method_name(call)
    if name not in ("split", "rsplit"):
        return None
    assert isinstance(call, nodes.Call) and isinstance(call.node, nodes.Getattr)
    arguments = list(_positional(call))
    once = len(arguments) == 2 and getattr(arguments[1], "value", None) == 1
    if not once or _integer(index) not in (0, 1, -1):
        return None
    return call.node.node, arguments[0], _integer(index) != 0, name == "rsplit"


def _positional(call: nodes.Call) -> Iterator[nodes.Expr]:
    yield from call.args
    for keyword in call.kwargs:
        if keyword.key == "maxsplit":
            yield keyword.value

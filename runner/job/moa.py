"""Moa, the language of ``${{ }}`` in a job's definition.

Rules: https://docs.gitlab.com/ci/functions/moa/. Values are those of JSON: None, bool, float, str, list, dict; nothing is
converted unless a function is asked to. A template is text with expressions in it.
"""

from __future__ import annotations

import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Value = Any  # what JSON can hold, or :class:`Sensitive`
Evaluate = Callable[[Mapping[str, Value]], Value]

OPEN, CLOSE = "${{", "}}"
_NUMBER = re.compile(r"[0-9]+(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?", re.ASCII)
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)
_SPACE = re.compile(r"\s*")
_OPERATOR = re.compile(r"\|\||&&|==|!=|<=|>=|[-+*/%<>!.,:()\[\]{}]")
_ESCAPES = {"\\": "\\", '"': '"', "n": "\n", "r": "\r", "t": "\t", "a": "\a", "b": "\b", "f": "\f", "v": "\v", "/": "/"}
_LITERALS = {"null": None, "true": True, "false": False}
RESERVED = frozenset(
    re.findall(
        r"\w+",
        "array as break case const continue default else fallthrough float for func function goto if import in int let loop "
        "map namespace number object package range return string struct switch type var void while",
    )
)
# From the loosest to the tightest; all of them associate to the left.
_BINARY = (("||",), ("&&",), ("==", "!=", "<", "<=", ">", ">="), ("+", "-"), ("*", "/", "%"))
_KINDS = {type(None): "null", bool: "boolean", float: "number", str: "string", list: "array", dict: "object"}
_RANKS = (type(None), bool, float, str, list, dict)
MAX_DEPTH = 100


class MoaError(Exception):
    """An expression cannot be read or evaluated. ``is_sensitive``: it would have shown a sensitive value."""

    def __init__(self, text: str, *, is_sensitive: bool = False) -> None:
        super().__init__(text)
        self.is_sensitive = is_sensitive


@dataclass(frozen=True, slots=True)
class Sensitive:
    """Stands for a value that no expression may use."""

    name: str


def render(template: str, env: Mapping[str, Value]) -> Value:
    """The template with its expressions evaluated: a string, or, where it is nothing but one expression, any value."""
    parts = _Parser(template).template(end="")
    values = [part if isinstance(part, str) else part(env) for part in parts]
    if len(values) == 1:
        return values[0]
    return "".join(to_text(value) for value in values)


def to_text(value: Value) -> str:
    """A value as the text around it shows it."""
    if isinstance(value, str):
        return value
    if value is None:
        return "<null>"
    if isinstance(value, list | dict):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_refuse)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Sensitive):
        raise _shown(value)
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e21 else repr(value)


def from_json(value: Any) -> Value:
    """A value of JSON as Moa has it: all numbers are floating-point."""
    if isinstance(value, list):
        return [from_json(item) for item in value]
    if isinstance(value, dict):
        return {key: from_json(item) for key, item in value.items()}
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _refuse(value: object) -> Any:
    if isinstance(value, Sensitive):
        raise _shown(value)
    raise TypeError


def _shown(value: Sensitive) -> MoaError:
    return MoaError(f"{value.name} is sensitive and cannot be used here", is_sensitive=True)


class _Parser:
    """Recursive descent; every method reads from ``self._at`` on and returns what evaluates the part."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0

    def _fail(self, text: str) -> MoaError:
        line = self._text.count("\n", 0, self._at) + 1
        column = self._at - self._text.rfind("\n", 0, self._at)
        return MoaError(f"{text} at {line}:{column}")

    # Text

    def template(self, *, end: str) -> list[str | Evaluate]:
        """Text and expressions up to ``end``, which is passed over; empty: to the end of the input."""
        parts: list[str | Evaluate] = []
        text: list[str] = []
        while True:
            if self._at >= len(self._text):
                if end:
                    raise self._fail("string is not terminated")
                break
            if end and self._text.startswith(end, self._at):
                self._at += len(end)
                break
            if self._text.startswith("\\" + OPEN, self._at):
                text.append(OPEN)
                self._at += len(OPEN) + 1
            elif self._text.startswith(OPEN, self._at):
                if text:
                    parts.append("".join(text))
                    text.clear()
                self._at += len(OPEN)
                parts.append(self._expression())
                self._expect(CLOSE)
            else:
                text.append(self._escaped() if end else self._char())
        if text or not parts:
            parts.append("".join(text))
        return parts

    def _char(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _escaped(self) -> str:
        """A character inside double quotes."""
        char = self._char()
        if char != "\\":
            return char
        kind = self._text[self._at : self._at + 1]
        if kind == "u":
            digits = self._text[self._at + 1 : self._at + 5]
            if not re.fullmatch(r"[0-9a-fA-F]{4}", digits):
                raise self._fail("invalid escape sequence")
            self._at += 5
            return chr(int(digits, 16))
        if kind not in _ESCAPES:
            raise self._fail("invalid escape sequence")
        self._at += 1
        return _ESCAPES[kind]

    # Expressions

    def _skip(self) -> None:
        match = _SPACE.match(self._text, self._at)
        self._at = match.end() if match else self._at

    def _peek(self) -> str:
        self._skip()
        match = _OPERATOR.match(self._text, self._at)
        return match[0] if match else ""

    def _take(self, *wanted: str) -> str:
        """The next operator, if it is one of these."""
        found = self._peek()
        if found not in wanted:
            return ""
        self._at += len(found)
        return found

    def _expect(self, wanted: str) -> None:
        self._skip()
        if not self._text.startswith(wanted, self._at):
            raise self._fail(f"expected {wanted!r}")
        self._at += len(wanted)

    def _expression(self, level: int = 0) -> Evaluate:
        self._depth += 1
        if self._depth > MAX_DEPTH * len(_BINARY):
            raise self._fail("expression is nested too deeply")
        if level == len(_BINARY):
            found = self._unary()
        else:
            found = self._expression(level + 1)
            while symbol := self._take(*_BINARY[level]):
                found = _binary(symbol, found, self._expression(level + 1))
        self._depth -= 1
        return found

    def _unary(self) -> Evaluate:
        symbols = []
        while symbol := self._take("+", "-", "!"):
            symbols.append(symbol)
        found = self._postfix()
        for symbol in reversed(symbols):
            found = _prefix(symbol, found)
        return found

    def _postfix(self) -> Evaluate:
        found, name = self._primary()
        while symbol := self._take(".", "[", "("):
            if symbol == ".":
                found = _access(found, _constant(self._name()))
            elif symbol == "[":
                found = _access(found, self._expression())
                self._expect("]")
            else:
                if name not in FUNCTIONS:
                    raise self._fail(f"unknown function {name!r}")
                found = _call(name, self._list(")"))
            name = ""
        return found

    def _name(self) -> str:
        self._skip()
        match = _NAME.match(self._text, self._at)
        if match is None:
            raise self._fail("expected a name")
        self._at = match.end()
        return match[0]

    def _primary(self) -> tuple[Evaluate, str]:
        """What an operator works on; a bare name comes with that name."""
        self._skip()
        char = self._text[self._at : self._at + 1]
        if char == '"':
            self._at += 1
            return _joined(self.template(end='"')), ""
        if char == "'":
            return _constant(self._raw_string()), ""
        number = _NUMBER.match(self._text, self._at)
        if number is not None:
            self._at = number.end()
            return _constant(float(number[0])), ""
        if self._take("("):
            found = self._expression()
            self._expect(")")
            return found, ""
        if self._take("["):
            return _array(self._list("]")), ""
        if self._take("{"):
            return self._object(), ""
        if _NAME.match(self._text, self._at) is None:
            raise self._fail("expected a value")
        name = self._name()
        if name in _LITERALS:
            return _constant(_LITERALS[name]), ""
        if name in RESERVED:
            raise self._fail(f"{name!r} is a reserved word")
        return _variable(name), name

    def _raw_string(self) -> str:
        match = re.compile(r"'((?:[^'\\]|\\.)*)'", re.DOTALL).match(self._text, self._at)
        if match is None:
            raise self._fail("string is not terminated")
        if re.search(r"\\[^\\']", re.sub(r"\\\\", "", match[1])):
            raise self._fail("invalid escape sequence")
        self._at = match.end()
        return re.sub(r"\\(.)", r"\1", match[1])

    def _list(self, end: str) -> list[Evaluate]:
        items: list[Evaluate] = []
        while not self._take(end):
            items.append(self._expression())
            if not self._take(","):
                self._expect(end)
                break
        return items

    def _object(self) -> Evaluate:
        pairs: list[tuple[Evaluate, Evaluate]] = []
        while not self._take("}"):
            self._skip()
            bare = _NAME.match(self._text, self._at)
            key = _constant(self._name()) if bare else self._expression()
            self._expect(":")
            pairs.append((key, self._expression()))
            if not self._take(","):
                self._expect("}")
                break
        return _mapping(pairs)


def _constant(value: Value) -> Evaluate:
    return lambda env: value


def _variable(name: str) -> Evaluate:
    def evaluate(env: Mapping[str, Value]) -> Value:
        if name not in env:
            raise MoaError(f"{name!r} is not defined")
        return env[name]

    return evaluate


def _joined(parts: list[str | Evaluate]) -> Evaluate:
    return lambda env: "".join(part if isinstance(part, str) else to_text(part(env)) for part in parts)


def _array(items: list[Evaluate]) -> Evaluate:
    return lambda env: [_plain(item(env)) for item in items]


def _mapping(pairs: list[tuple[Evaluate, Evaluate]]) -> Evaluate:
    def evaluate(env: Mapping[str, Value]) -> Value:
        found = {}
        for key, value in pairs:
            name = key(env)
            if not isinstance(name, str):
                raise MoaError(f"an object's key must be a string, not {_kind(name)}")
            found[name] = _plain(value(env))
        return found

    return evaluate


def _plain(value: Value) -> Value:
    if isinstance(value, Sensitive):
        raise _shown(value)
    return value


def _kind(value: Value) -> str:
    return _KINDS[type(_plain(value))]


def _access(target: Evaluate, key: Evaluate) -> Evaluate:
    def evaluate(env: Mapping[str, Value]) -> Value:
        holder, name = _plain(target(env)), _plain(key(env))
        if isinstance(holder, dict) and isinstance(name, str):
            if name not in holder:
                raise MoaError(f"{name!r} does not exist")
            return holder[name]
        if isinstance(holder, list) and isinstance(name, float) and name.is_integer():
            if not 0 <= name < len(holder):
                raise MoaError(f"index {int(name)} is out of range")
            return holder[int(name)]
        raise MoaError(f"{_kind(name)} cannot be looked up in {_kind(holder)}")

    return evaluate


def truth(value: Value) -> bool:
    """Whether a value counts as true."""
    return bool(_plain(value))


def _prefix(symbol: str, operand: Evaluate) -> Evaluate:
    def evaluate(env: Mapping[str, Value]) -> Value:
        value = operand(env)
        if symbol == "!":
            return not truth(value)
        if _kind(value) != "number":
            raise MoaError(f"{symbol} needs a number, not {_kind(value)}")
        return -value if symbol == "-" else value

    return evaluate


def _binary(symbol: str, left: Evaluate, right: Evaluate) -> Evaluate:
    if symbol == "||":
        return lambda env: value if truth(value := left(env)) else right(env)
    if symbol == "&&":
        return lambda env: right(env) if truth(value := left(env)) else value
    if symbol in _COMPARISONS:
        compare = _COMPARISONS[symbol]
        return lambda env: compare(_order(left(env)), _order(right(env)))
    return lambda env: _calculate(symbol, _plain(left(env)), _plain(right(env)))


_COMPARISONS: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


def _order(value: Value) -> Any:
    """What Python compares as Moa compares values: by kind first, objects by length, keys, values."""
    rank = _RANKS.index(type(_plain(value)))
    match value:
        case None:
            return (rank,)
        case str():
            return (rank, value.encode(errors="surrogatepass"))
        case list():
            return (rank, [_order(item) for item in value])
        case dict():
            keys = sorted(value)
            return (rank, len(keys), keys, [_order(value[key]) for key in keys])
        case _:
            return (rank, value)


def _calculate(symbol: str, left: Value, right: Value) -> Value:
    kinds = {_kind(left), _kind(right)}
    if symbol == "+" and kinds == {"string"}:
        return left + right
    if kinds != {"number"}:
        raise MoaError(f"{symbol} cannot be used on {_kind(left)} and {_kind(right)}")
    if symbol in ("/", "%") and right == 0:
        raise MoaError("division by zero")
    if symbol == "%":
        return float(left - right * int(left / right))
    arithmetic = {"+": operator.add, "-": operator.sub, "*": operator.mul, "/": operator.truediv}
    return float(arithmetic[symbol](left, right))


def _number(value: Value) -> float:
    if _kind(value) == "number":
        return float(value)
    if isinstance(value, str) and _NUMBER.fullmatch(value.removeprefix("-")):
        return float(value)
    raise MoaError(f"num: {_kind(value)} is no number")


FUNCTIONS: Mapping[str, Callable[[Value], Value]] = {"str": to_text, "num": _number, "bool": truth}


def _call(name: str, arguments: list[Evaluate]) -> Evaluate:
    if len(arguments) != 1:
        raise MoaError(f"{name} takes one value, not {len(arguments)}")
    function = FUNCTIONS[name]
    return lambda env: function(arguments[0](env))

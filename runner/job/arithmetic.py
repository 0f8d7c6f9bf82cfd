"""Arithmetic of shells on whole numbers of 64 bits: what stands between ``$((`` and ``))`` (``job-lifecycle.md`` 13.2)."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping

_SIGN = 1 << 63
_TOKEN = re.compile(
    r"\s*(?:(0[xX][0-9a-fA-F]+|[0-9]+#[0-9a-zA-Z]+|[0-9]+)(?![0-9a-zA-Z_#])"
    r"|([A-Za-z_][A-Za-z0-9_]*)"
    r"|(\*\*|<<|>>|<=|>=|==|!=|&&|\|\||[-+*/%<>&^|?:,()!~]))",
    re.ASCII,
)
# The binding of operators, the weakest first; those of a line go from left to right.
_LEVELS = (
    ("||",),
    ("&&",),
    ("|",),
    ("^",),
    ("&",),
    ("==", "!="),
    ("<=", ">=", "<", ">"),
    ("<<", ">>"),
    ("+", "-"),
    ("*", "/", "%"),
)
_BITS = 63
_DIGITS_MAX = 64
_NESTED_MAX = 20


def _divided(left: int, right: int) -> int:
    """Towards zero."""
    quotient = abs(left) // abs(right)
    return quotient if (left < 0) == (right < 0) else -quotient


_OPERATIONS: Mapping[str, Callable[[int, int], int]] = {
    "||": lambda left, right: bool(left) or bool(right),
    "&&": lambda left, right: bool(left) and bool(right),
    "|": operator.or_,
    "^": operator.xor,
    "&": operator.and_,
    "==": operator.eq,
    "!=": operator.ne,
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
    "<<": lambda left, right: left << (right & _BITS),
    ">>": lambda left, right: left >> (right & _BITS),
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": _divided,
    "%": lambda left, right: left - right * _divided(left, right),
}


def calculate(text: str, look_up: Callable[[str], str | None]) -> int:
    """The value of an expression; nothing is 0, and so is a name that is not set.

    Nothing can be assigned. Raises :class:`ValueError`.
    """
    if not text.strip():
        return 0
    try:
        return _Calculation(text, look_up).run()
    except ZeroDivisionError as error:
        raise ValueError("division by 0") from error


class _Calculation:
    """One expression. What is on the other side of ``&&``, ``||`` and ``?`` is calculated, too: that changes nothing."""

    def __init__(self, text: str, look_up: Callable[[str], str | None]) -> None:
        self._look_up = look_up
        self._tokens = _tokens(text)
        self._at = 0
        self._nested = 0

    def run(self) -> int:
        value = self._list()
        if self._at < len(self._tokens):
            raise ValueError(f"unexpected {self._tokens[self._at]}")
        return value

    def _next(self, *wanted: str) -> str:
        """The next token, taken when it is one of these."""
        token = self._tokens[self._at] if self._at < len(self._tokens) else ""
        if token not in wanted:
            return ""
        self._at += 1
        return token

    def _list(self) -> int:
        self._nested += 1
        if self._nested > _NESTED_MAX:
            raise ValueError("nested too deeply")
        value = self._choice()
        while self._next(","):
            value = self._choice()
        self._nested -= 1
        return value

    def _choice(self) -> int:
        condition = self._binary(0)
        if not self._next("?"):
            return condition
        first = self._list()
        if not self._next(":"):
            raise ValueError("? without its :")
        self._nested += 1
        second = self._choice()
        self._nested -= 1
        return first if condition else second

    def _binary(self, level: int) -> int:
        if level == len(_LEVELS):
            return self._power()
        value = self._binary(level + 1)
        while sign := self._next(*_LEVELS[level]):
            value = _wrapped(int(_OPERATIONS[sign](value, self._binary(level + 1))))
        return value

    def _power(self) -> int:
        base = self._unary()
        if not self._next("**"):
            return base
        self._nested += 1
        if self._nested > _NESTED_MAX:
            raise ValueError("nested too deeply")
        exponent = self._power()
        self._nested -= 1
        if exponent < 0:
            raise ValueError("exponent less than 0")
        return _wrapped(pow(base, exponent, 2 * _SIGN))

    def _unary(self) -> int:
        signs = []
        while sign := self._next("-", "+", "!", "~"):
            signs.append(sign)
        value = self._single()
        for sign in reversed(signs):
            value = {"-": -value, "+": value, "!": int(not value), "~": ~value}[sign]
        return _wrapped(value)

    def _single(self) -> int:
        if self._next("("):
            value = self._list()
            if not self._next(")"):
                raise ValueError("( without its )")
            return value
        if self._at == len(self._tokens):
            raise ValueError("operand expected")
        token = self._tokens[self._at]
        self._at += 1
        if token[0].isdigit():
            return _number(token)
        if not (token[0].isalpha() or token[0] == "_"):
            raise ValueError(f"unexpected {token}")
        held = (self._look_up(token) or "").strip()
        sign = held[:1] if held[:1] in ("-", "+") else ""
        digits = held.removeprefix(sign)
        value = _number(digits) if digits else 0
        return _wrapped(-value if sign == "-" else value)


def _tokens(text: str) -> list[str]:
    found, at = [], 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise ValueError(f"syntax error at {text[at : at + 20]}")
        found.append(match.group().strip())
        at = match.end()
    return found


def _number(text: str) -> int:
    """Decimal, ``0x`` hexadecimal, ``0`` octal, ``base#digits``."""
    if not text.isascii() or len(text) > _DIGITS_MAX:
        raise ValueError(f"no number: {text[:20]}")
    base, hash_sign, digits = text.partition("#")
    if hash_sign:
        return _wrapped(int(digits, int(base)))
    if text[:2] in ("0x", "0X"):
        return _wrapped(int(text, 16))
    return _wrapped(int(text, 8 if text.startswith("0") and len(text) > 1 else 10))


def _wrapped(value: int) -> int:
    return (value + _SIGN) % (2 * _SIGN) - _SIGN

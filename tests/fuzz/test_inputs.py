"""What comes from outside, as any bytes: payloads, configuration files, texts with references."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from executors.registry import KINDS
from runner.config.load import parse
from runner.coordinator.payload import decode, salvage
from runner.errors import PayloadInvalid
from runner.job.expansion import expand
from runner.job.words import BadWord, expand_word
from tests.fakes.coordinator import job_payload
from tests.fuzz.mutation import mutated

EXAMPLE = (Path(__file__).parents[2] / "config.toml.example").read_bytes()
PAYLOAD = json.dumps(job_payload(1, ["echo"], cache=[{"key": "k", "paths": ["a"]}])).encode()
JSON_WORDS = [b"null", b"[]", b"{}", b'"', b"-1", b"1e999", b"99999999999999999999", b"[" * 40, b"true", b"\xff", b'"\\ud800"']
TOML_WORDS = [b"[[", b"]]", b"[", b"=", b'"""', b"'''", b"\n", b"inf", b"-1", b"1e9", b"[runners.docker]", b"{", b"\xff", b"true"]


def check_payload(raw: bytes) -> None:
    try:
        decode(raw)
    except PayloadInvalid:
        pass
    found = salvage(raw)
    if found is not None:
        assert found[1], "a token to report with"


@given(mutated(PAYLOAD, JSON_WORDS))
@example(b"[" * 100_000)
@example(b'{"a":' * 100_000)
@example(b'{"id": 1, "token": "t", "variables": ' + b"[" * 100_000)
def test_damaged_payloads(raw: bytes) -> None:
    check_payload(raw)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(sorted(json.loads(PAYLOAD))), values)
def test_payloads_with_something_else_in_a_place(key: str, value: object) -> None:
    check_payload(json.dumps({**json.loads(PAYLOAD), key: value}).encode(errors="surrogatepass"))


def check_configuration(raw: bytes) -> None:
    loaded = parse(raw, Path("config.toml"), environ={}, executors=KINDS)
    assert loaded.config is not None or loaded.errors
    for one in loaded.diagnostics:
        assert one.text


@given(mutated(EXAMPLE, TOML_WORDS))
def test_damaged_configurations(raw: bytes) -> None:
    check_configuration(raw)


@given(st.binary(max_size=200))
@example(b"a = " + b"[" * 20_000)
@example(b"a." * 20_000 + b"b = 1")
@example(b"a = " + b"{b = " * 5_000)
def test_configurations_of_any_bytes(raw: bytes) -> None:
    check_configuration(raw)


@given(st.lists(st.tuples(st.sampled_from(["concurrent", "check_interval", "log_level", "listen_address"]), values), max_size=4))
def test_configurations_with_something_else_in_a_place(pairs: list[tuple[str, object]]) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in dict(pairs).items() if "null" not in json.dumps(value)]
    check_configuration("\n".join(lines).encode(errors="replace"))


def expanded(text: str, known: dict[str, str]) -> str:
    """The same, one character after the other."""
    found, at = "", 0
    while at < len(text):
        rest = text[at:]
        name = re.match(r"[A-Za-z_][A-Za-z0-9_]*", rest[1:], re.ASCII)
        if not rest.startswith("$") or len(rest) == 1:
            found, at = found + rest[0], at + 1
        elif rest.startswith("$$"):
            found, at = found + "$", at + 2
        elif rest.startswith("${"):
            end = rest.find("}")
            inside = rest[2:end]
            found += "" if end < 0 else "$" if inside == "$" else known.get(inside, "")
            at += 2 if end < 0 else end + 1
        elif rest[1] in "0123456789*#@!?-":
            at += 2
        elif name is not None:
            found, at = found + known.get(name[0], ""), at + 1 + name.end()
        else:
            found, at = found + "$", at + 1
    return found


@given(st.text("$${}ABx_1 -", max_size=40), st.dictionaries(st.text("AB_", min_size=1, max_size=2), st.text("$A{}", max_size=4)))
def test_values_are_expanded_once(text: str, known: dict[str, str]) -> None:
    assert expand(text, known.get) == expanded(text, known)


@given(st.text("$(){}[]AB:-+?#%/*1\\\"'` ,=<>!&|^~.", max_size=60))
@example("$((" + "9" * 5000 + "))")
@example("$((" + "9" * 4000 + "*" + "9" * 4000 + "))")
@example("$((" + "9*" * 20_000 + "9))")
@example("$((" + "(" * 500 + "1" + ")" * 500 + "))")
@example("${A:-" * 200 + "}" * 200)
@example("${A%" + "*a" * 500 + "}")
@example("$((1<<999999999999))")
@example("$((9**9**9**9))")
def test_words_are_expanded_or_refused(text: str) -> None:
    try:
        expand_word(text, {"A": "a" * 50, "B": "$A"}.get)
    except BadWord:
        pass


@pytest.mark.parametrize("text", ["no reference", "", "a$", "50% of $$5"])
def test_texts_without_references_stay(text: str) -> None:
    assert expand(text, dict[str, str]().get).replace("$", "") == text.replace("$", "")

"""Words of ``paths``, ``exclude`` and ``name``: as a shell reads text in double quotes."""

from __future__ import annotations

import subprocess

import pytest

from runner.job.words import BadWord, expand_word

VALUES = {"SUB": "a", "LONG": "one.two.three", "EMPTY": "", "N": "4", "SP": "x y*", "DOLLAR": "$SUB`id`"}
WORDS = [
    "plain",
    "$SUB/1.txt",
    "${SUB}b",
    "$SUBb",
    "${UNSET:-a}/x",
    "${UNSET-a}${EMPTY-b}${EMPTY:-c}",
    "${UNSET:=a}",
    "${SUB:+yes}${EMPTY:+no}${EMPTY+set}",
    "${LONG%.*}|${LONG%%.*}|${LONG#*.}|${LONG##*.}",
    "${LONG:4}|${LONG:4:3}|${LONG: -5}|${LONG:0:-6}",
    "${LONG/o/0}|${LONG//o/0}|${LONG/two/$SUB}|${LONG//./}",
    "${#LONG}",
    "$((1+2*3))|$((N % 3))|$(( (N+1) / 2 ))",
    "\\$SUB|\\\\|\\a|\\`",
    "$SP|$DOLLAR",
    "${UNSET:-${LONG%%.*}}",
    "100%|a$|$/x|~/x|{a,b}|*",
    "'$SUB'",
]


@pytest.mark.parametrize("word", WORDS)
def test_expands_as_bash_does(word: str) -> None:
    done = subprocess.run(
        ["bash", "-c", f'printf %s "{word}"'], env={**VALUES, "PATH": "/bin:/usr/bin"}, capture_output=True, check=True
    )
    assert expand_word(word, VALUES.get) == done.stdout.decode()


@pytest.mark.parametrize(
    ("word", "why"),
    [
        ("$(id)/x", "unexpected command substitution at 1:1"),
        ("`id`", "unexpected command substitution at 1:1"),
        ("a\n b$(id)", "unexpected command substitution at 2:3"),
        ("${UNSET:-$(id)}", "unexpected command substitution"),
        ("${UNSET:?must be set}", "UNSET: must be set"),
        ("${SUB", "without its"),
        ("${SUB!}", "not a valid parameter expansion"),
        ("$((1/0))", "cannot be calculated"),
        ("$((__import__('os')))", "cannot be calculated"),
        ("${a:-" * 40 + "}" * 40, "nested too deeply"),
    ],
)
def test_what_cannot_be_expanded_says_why(word: str, why: str) -> None:
    with pytest.raises(BadWord, match=why.replace("?", ".")):
        expand_word(word, VALUES.get)

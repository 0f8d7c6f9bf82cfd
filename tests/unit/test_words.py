"""Words of ``paths``, ``exclude`` and ``name``: as a shell reads text in double quotes."""

from __future__ import annotations

import subprocess

import pytest

from runner.job.words import BadWord, expand_word

VALUES = {
    "SUB": "a",
    "LONG": "one.two.three",
    "EMPTY": "",
    "N": "4",
    "SP": "x y*",
    "DOLLAR": "$SUB`id`",
    "OCTAL": "010",
    "LESS": "-7",
}
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
    "${SUB: -5}|${LONG:20}|${LONG:N+1:2}|${LONG:(-3)}|${LONG: $N : 2 }|${LONG::3}",
    "$((-7/2))|$((LESS % 2))|$((-5*3/2))|$((7-3-2))|$((-2**2))|$((2**3**2))",
    "$((OCTAL+1))|$((0x1f))|$((16#ff))|$((9223372036854775807+1))|$((2**64+UNSET))|$(( ))",
    "$((1<2))|$((1+1==2))|$((N>3 && N<5))|$((N>3||0))|$((N>5?1:N>3?2:3))|$((!N))|$((1,2))",
    "$((1<<4|1))|$((~1))|$((5&3^1))|$((-8>>1))|$((1&2==2))|$(( - - 1 ))|$((((1))))",
    "${LONG/#one/1}|${LONG/#two/2}|${LONG/%three/3}|${LONG/%two/2}|${LONG/./\\/}|${LONG/}|${LONG//./\\/}",
    "${LONG^^}|${LONG^}|${EMPTY^}|${UNSET,,}",
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
        ("$((1/0))", "cannot be calculated: 1/0: division by 0"),
        ("$((1+))", "operand expected"),
        ("$((08))", "cannot be calculated: 08"),
        ("$((N=1))", "syntax error"),
        ("$((" + "(" * 200 + "1" + ")" * 200 + "))", "nested too deeply"),
        ("$((" + "1**" * 2000 + "1))", "nested too deeply"),
        ("$((__import__('os')))", "cannot be calculated"),
        ("${a:-" * 40 + "}" * 40, "nested too deeply"),
    ],
)
def test_what_cannot_be_expanded_says_why(word: str, why: str) -> None:
    with pytest.raises(BadWord, match=why.replace("?", ".")):
        expand_word(word, VALUES.get)

"""The expression language of job inputs, by the rules and examples of GitLab's documentation."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.job.moa import OPEN, MoaError, Sensitive, from_json, render, to_text

ENV = {
    "job": {
        "inputs": from_json(
            {
                "name": "Ada",
                "count": 3,
                "ratio": 0.5,
                "on": True,
                "off": False,
                "tags": ["smoke", "all"],
                "odd-name": "dash",
                "none": None,
                "empty": "",
            }
        )
        | {"token": Sensitive("job.inputs.token")}
    }
}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("plain $ text { } $${", "plain $ text { } $${"),
        ("${{ job.inputs.name }}", "Ada"),
        ("${{job.inputs.name}}!", "Ada!"),
        ("n=${{ job.inputs.count }} r=${{ job.inputs.ratio }} ${{ job.inputs.on }}", "n=3 r=0.5 true"),
        (r"Use \${{ to start", "Use ${{ to start"),
        ("${{ job.inputs.count }}", 3.0),
        ("${{ null }}", None),
        ("x${{ null }}", "x<null>"),
        ("${{ 1.5e3 }}", 1500.0),
        ("${{ 2E-4 }}", 0.0002),
        (r'${{ "Hello\nWorld\u0041\/" }}', "Hello\nWorldA/"),
        (r"${{ 'It\'s a \\ string' }}", "It's a \\ string"),
        ("${{ 'Literal ${{ not evaluated }}' }}", "Literal ${{ not evaluated }}"),
        ('${{ "Hi ${{ job.inputs.name }} ${{ 1 + 1 }}" }}', "Hi Ada 2"),
        ("${{ 2 + 3 * 4 - 6 / 2 }}", 11.0),
        ("${{ (1 + 2) * 3 }}", 9.0),
        ("${{ 10 - 4 - 3 }}", 3.0),
        ("${{ -7 % 3 }}", -1.0),
        ("${{ --5 }}", 5.0),
        ('${{ "a" + "b" }}', "ab"),
        ('${{ 1 == "1" }}', False),
        ("${{ [1, 2] < [1, 3] }}", True),
        ("${{ {a: 1, b: 2} == {b: 2, a: 1} }}", True),
        ("${{ null == null && false < true }}", True),
        ('${{ job.inputs.empty || "default" }}', "default"),
        ('${{ job.inputs.name == "Ada" && "yes" || "no" }}', "yes"),
        ("${{ !job.inputs.off }}", True),
        ("${{ job.inputs.tags[1] }}", "all"),
        ('${{ job.inputs["odd-name"] }}', "dash"),
        ("${{ job.inputs.tags }}!", '["smoke","all"]!'),
        ("${{ [1, 2, 3,] }}", [1.0, 2.0, 3.0]),
        ('${{ {name: "x", (job.inputs.name): true,} }}', {"name": "x", "Ada": True}),
        ("${{ str(42) }}", "42"),
        ("${{ str(null) }}", "<null>"),
        ('${{ num("3.14") }}', 3.14),
        ('${{ bool("") }}', False),
        ("${{ false && nothing.there }}", False),
        ("${{\n  job.inputs.name\n}}", "Ada"),
    ],
)
def test_expressions(template: str, expected: Any) -> None:
    found = render(template, ENV)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("${{ job.inputs.missing }}", "'missing' does not exist"),
        ("${{ vars.CI }}", "'vars' is not defined"),
        ("${{ 1 / 0 }}", "division by zero"),
        ('${{ "hello" + 42 }}', "+ cannot be used on string and number"),
        ("a\n ${{ 1 + }}", "expected a value at 2:10"),
        ("${{ 1 ", "expected '}}' at 1:7"),
        ('${{ "open }}', "string is not terminated"),
        (r'${{ "\q" }}', "invalid escape sequence"),
        ("${{ while }}", "'while' is a reserved word"),
        ("${{ shell(1) }}", "unknown function 'shell'"),
        ("${{ str(1, 2) }}", "str takes one value, not 2"),
        ("${{ job.inputs.tags[2] }}", "index 2 is out of range"),
        ("${{ job.inputs.name.x }}", "string cannot be looked up in string"),
        ("${{ " + "(" * 5000 + "1", "nested too deeply"),
        ('${{ num("1e") }}', "num: string is no number"),
    ],
)
def test_errors_say_what_and_where(template: str, text: str) -> None:
    with pytest.raises(MoaError) as caught:
        render(template, ENV)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    "template",
    [
        "x${{ job.inputs.token }}",
        '${{ "a" + job.inputs.token }}',
        "${{ str(job.inputs) }}",
        "${{ [job.inputs.token] }}!",
        '${{ job.inputs.token == "guess" }}',
        "${{ job.inputs.token && 1 }}",
        "${{ job.inputs.token[0] }}",
    ],
)
def test_sensitive_values_are_never_used(template: str) -> None:
    with pytest.raises(MoaError) as caught:
        to_text(render(template, ENV))
    assert caught.value.is_sensitive


@given(st.text(alphabet="${} \"'\\ab1+[](),.:!&|", max_size=40))
def test_no_text_breaks_the_parser(text: str) -> None:
    """Anything is a value or a :class:`MoaError`."""
    try:
        found = render(text, ENV)
    except MoaError:
        return
    if OPEN not in text:
        assert found == text

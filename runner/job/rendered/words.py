"""Texts of a job's definition that its variables are put into where they are used: as words of a shell."""

from __future__ import annotations

from runner.job.script import quote
from runner.job.words import BadWord, expand_word


def pattern_word(name: str, text: str, what: str) -> list[str]:
    """Lines that give the shell variable ``name`` the expanded text; ``what`` is ``path`` or ``name``.

    A text that cannot be expanded stays, with a warning. What only some shells can expand is tried in a shell of its own.
    """
    try:
        expand_word(text, lambda _: "")
    except BadWord as error:
        warning = f'invalid path "": {error}' if what == "path" else f"invalid artifact name: {error}"
        return [f"pyrunner_say warning {quote(warning)}\n", f"{name}={quote(text)}\n"]
    if "$" not in text and "\\" not in text:
        return [f"{name}={quote(text)}\n"]
    return [
        f'if {name}=$(printf "%s." {in_double_quotes(text)}); then {name}=${{{name}%.}}; else {name}={quote(text)}; fi\n',
    ]


def in_double_quotes(text: str) -> str:
    """A word in which a shell expands variables, and nothing else. Command substitutions must not be in it."""
    found = []
    position = 0
    while position < len(text):
        character = text[position]
        following = text[position + 1 : position + 2]
        if character == "\\":
            if following and following in '$`"\\':
                found.append(character + following)
                position += 1
            else:
                found.append("\\\\")
        else:
            found.append('\\"' if character == '"' else character)
        position += 1
    return '"' + "".join(found) + '"'

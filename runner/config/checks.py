"""What is checked of the values of a ``[[runners]]`` entry beyond their types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from executors.registry import Kind
from runner.config.diagnostics import Diagnostic, Severity, did_you_mean
from runner.config.model import Config
from runner.config.schema import LATER_EXECUTORS, REFUSED_EXECUTORS
from runner.config.tables import Reader
from runner.errors import CoordinatorError
from runner.urls import server_url

_LABEL_KEY = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{2,64}")
_LABEL_VALUE = re.compile(r"[a-zA-Z0-9._-]{1,256}")
_TOKEN = re.compile(r"[!-~]*")
MAX_LABELS = 32

Place = tuple[str | int, ...]


def check_executor(reader: Reader, executors: Mapping[str, Kind], values: Mapping[str, Any], place: Place) -> None:
    """The executor must be one that there is; the shell should be one that it has."""
    executor, name = values.get("executor", ""), values.get("name", "")
    if executor in executors:
        _check_shell(reader, executors[executor], values.get("shell", ""), place)
        return
    supported = f"supported: {', '.join(executors)}"
    who = f'runner "{name}": executor "{executor}"'
    if executor in REFUSED_EXECUTORS or executor in LATER_EXECUTORS:
        text = f"{who} is not supported (the runner is disabled, others go on)"
        reader.fail("unsupported-executor", text, *place, "executor", hint=supported)
    elif not executor:
        reader.fail("unknown-executor", f'runner "{name}" has no executor', *place, hint=supported)
    else:
        hint = did_you_mean(executor, executors) or supported
        reader.fail("unknown-executor", f"{who} is not known", *place, "executor", hint=hint)


def _check_shell(reader: Reader, kind: Kind, shell: str, place: Place) -> None:
    if shell and shell not in kind.shells:
        text = f'shell "{shell}" is not supported: every job of this runner fails'
        reader.warn("unknown-shell", text, *place, "shell", hint=f"supported: {', '.join(kind.shells)}")


def check_url(reader: Reader, url: str, *place: str | int) -> None:
    """Something must be there that can be asked."""
    try:
        server_url(url)
    except CoordinatorError as error:
        reader.warn("bad-url", f"{error}: nothing can be asked there", *place)


def check_token(reader: Reader, token: str, name: str, *place: str | int) -> None:
    """A token is printable ASCII without blanks; what else there is was copied along with it."""
    if not _TOKEN.fullmatch(token):
        reader.warn("odd-token", f'the token of runner "{name}" has blanks or letters that no token has', *place)


def readable_by_all(config: Config) -> Diagnostic | None:
    """A finding for a file that every account of the host may read, jobs among them, where it holds a token."""
    holds = next((one for one in config.runners if one.token and not one.token_reference and not one.pyrunner.token_file), None)
    if holds is None:
        return None
    text = f"every account of this host can read the token of runner {holds.name!r}"
    hint = f"chmod 600 {config.path}"
    return Diagnostic(
        path=config.path, severity=Severity.WARNING, code="readable-by-all", text=text, line=holds.line, column=1, hint=hint
    )


def check_labels(reader: Reader, labels: Mapping[str, str], place: Place) -> None:
    """GitLab takes labels of this form only, and no more than :data:`MAX_LABELS`."""
    if len(labels) > MAX_LABELS:
        reader.fail("bad-label", f"more than {MAX_LABELS} labels", *place, "labels")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key) or not _LABEL_VALUE.fullmatch(value):
            reader.fail("bad-label", f"label {key!r} cannot be used", *place, "labels", key)

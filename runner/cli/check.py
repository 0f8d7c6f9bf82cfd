"""``pyrunner check``: what is wrong with a configuration file."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import click

from executors.registry import KINDS
from runner.cli.context import fail
from runner.config.diagnostics import Diagnostic, Severity
from runner.config.load import Loaded, load
from runner.config.location import find_config


@click.command("check")
@click.argument("file", required=False)
@click.option("-c", "--config", help="Configuration file")
@click.option("--strict", is_flag=True, help="Fail for warnings, too")
@click.option("--json", "as_json", is_flag=True, help="Print JSON")
def command(*, file: str | None, config: str | None, strict: bool, as_json: bool) -> int:
    """Say what is wrong with a configuration file. Writes nothing and asks nobody."""
    path = find_config(file or config, os.environ, is_root=os.geteuid() == 0).path
    try:
        loaded = load(path, environ=os.environ, executors=KINDS)
    except OSError as error:
        fail(f"{path}: {error.strerror}")
    found = sorted(loaded.diagnostics, key=lambda one: (one.line, one.column))
    errors = sum(one.severity is Severity.ERROR for one in found)
    if as_json:
        click.echo(json.dumps([_as_json(one) for one in found], indent=2))
    else:
        _print(path, loaded, found, errors)
    return 1 if errors or (strict and found) else 0


def _print(path: Path, loaded: Loaded, found: Sequence[Diagnostic], errors: int) -> None:
    for one in found:
        click.echo(str(one))
    counted = f"errors: {errors}, warnings: {len(found) - errors}"
    if loaded.config is None:
        click.echo(f"{path}: cannot be used: {counted}")
    else:
        usable = sum(runner.disabled is None for runner in loaded.config.runners)
        click.echo(f"{path}: {usable} of {len(loaded.config.runners)} runners can be used: {counted}")


def _as_json(one: Diagnostic) -> dict[str, object]:
    return {
        "path": str(one.path),
        "line": one.line,
        "column": one.column,
        "severity": str(one.severity),
        "code": one.code,
        "text": one.text,
        "hint": one.hint,
    }

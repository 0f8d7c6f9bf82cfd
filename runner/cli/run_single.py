"""``pyrunner run-single``: jobs of one runner, without a daemon."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

import click

from runner.cli.context import begin, fail, read_config
from runner.cli.flags import runner_options, runner_values


@click.command("run-single")
@click.option("-c", "--config", help="Configuration file, with --runner")
@click.option("-r", "--runner", "runner_name", help="Name of a runner of the file")
@click.option("--max-builds", type=int, default=0, help="Jobs to run before it ends, 0: no limit")
@click.option("--wait-timeout", type=int, default=0, help="Seconds to wait for a job before it ends, 0: no limit")
@runner_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    *,
    config: str | None,
    runner_name: str | None,
    max_builds: int,
    wait_timeout: int,
    **keys: Any,
) -> int:
    """Run jobs of one runner until a limit or a signal says stop."""
    from runner.daemon.single import SingleOptions, run_single

    location = begin(ctx, config, mode=False)
    values = runner_values(keys)
    if runner_name:
        found = [runner for runner in read_config(location.path).runners if runner.name == runner_name]
        if not found:
            fail(f"no runner {runner_name!r} in {location.path}")
        runner = found[0]
    else:
        for key in ("url", "token", "executor"):
            if not values.get(key):
                fail(f"Missing {'URL' if key == 'url' else key.capitalize()}")
        runner = _from_flags(values)
    if runner.disabled is not None:
        fail(runner.disabled)
    with tempfile.TemporaryDirectory(prefix="pyrunner-single-") as state_dir:
        return run_single(
            SingleOptions(
                runner=runner,
                config=location.path,
                state_dir=Path(state_dir),
                use_saved_id=bool(runner_name),
                max_builds=max_builds,
                wait_timeout_s=wait_timeout,
            )
        )


def _from_flags(values: dict[str, Any]) -> Any:
    """A runner entry from flags, read and checked as if it stood in a file."""
    from executors.registry import KINDS
    from runner.config.edit import runner_text
    from runner.config.load import parse

    values.setdefault("name", socket.gethostname())
    loaded = parse(runner_text(values).encode(), Path("flags"), environ=os.environ, executors=KINDS)
    if loaded.config is None:
        fail("; ".join(map(str, loaded.errors)))
    return loaded.config.runners[0]

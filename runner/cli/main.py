"""The command line: options that every command has, and commands that are imported when they are used."""

from __future__ import annotations

import importlib
import os
import platform
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import click

from runner.errors import RunnerError
from runner.identity import NAME, REVISION, VERSION, architecture, os_name

COMMANDS = {
    "check": ("runner.cli.check", "Say what is wrong with a configuration file"),
    "drain": ("runner.cli.drain", "Let the daemon end once its jobs have ended"),
    "list": ("runner.cli.listing", "List the configured runners"),
    "register": ("runner.cli.register", "Register a runner with GitLab"),
    "reload": ("runner.cli.reload", "Let the daemon load its configuration again"),
    "reset-token": ("runner.cli.reset_token", "Get a new authentication token for a runner"),
    "run": ("runner.cli.run", "Run the daemon"),
    "run-single": ("runner.cli.run_single", "Run jobs of one runner, without a configuration file if need be"),
    "status": ("runner.cli.status", "Show what the daemon is doing"),
    "unregister": ("runner.cli.unregister", "Remove a runner from GitLab and from the configuration"),
    "verify": ("runner.cli.verify", "Check that GitLab knows the configured runners"),
}


class LazyGroup(click.Group):
    """Imports a command only when it is called. Global options may stand behind the command, too."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command itself."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in sorted(COMMANDS.items())])

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        """As the reference words it."""
        if args and args[0] not in COMMANDS:
            raise click.ClickException(f"Command {args[0]} not found.")
        return super().resolve_command(ctx, args)


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    invoke_without_command=True,
)
@click.option("--debug", is_flag=True, envvar="RUNNER_DEBUG", help="Debug mode")
@click.option("--log-format", envvar="LOG_FORMAT", help="Log format: runner, text, json")
@click.option("-l", "--log-level", envvar="LOG_LEVEL", help="Log level")
@click.option("-v", "--version", is_flag=True, help="Show the version")
@click.pass_context
def cli(ctx: click.Context, *, debug: bool, log_format: str | None, log_level: str | None, version: bool) -> None:
    """pyrunner runs CI jobs for GitLab."""
    ctx.obj = {"log_level": "debug" if debug else log_level, "log_format": log_format}
    if version:
        click.echo(version_text())
        ctx.exit()
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


def version_text() -> str:
    """What ``--version`` prints."""
    rows = {
        "Version": VERSION,
        "Git revision": REVISION,
        "Python version": platform.python_version(),
        "OS/Arch": f"{os_name()}/{architecture()}",
    }
    return "\n".join(f"{key + ':':<15} {value}" for key, value in rows.items())


def arranged(argv: Sequence[str]) -> list[str]:
    """Global options, and ``--config`` before the command, put where click expects them."""
    words = list(argv)
    command = next((index for index, word in enumerate(words) if word in COMMANDS), None)
    if command is None:
        return words
    before, name, behind = words[:command], words[command], words[command + 1 :]
    moved, before = _split(before, {"-c", "--config"}, set())
    global_ones, behind = _split(behind, {"--log-format", "--log-level", "-l"}, {"--debug"})
    return [*before, *global_ones, name, *moved, *behind]


def _split(words: list[str], with_value: set[str], without: set[str]) -> tuple[list[str], list[str]]:
    taken: list[str] = []
    rest: list[str] = []
    waiting = iter(words)
    for word in waiting:
        name = word.partition("=")[0]
        if word == "--":
            rest += [word, *waiting]
        elif word in without or (name in with_value and "=" in word):
            taken.append(word)
        elif word in with_value:
            taken += [word, *[value for value in [next(waiting, None)] if value is not None]]
        else:
            rest.append(word)
    return taken, rest


def main(argv: Sequence[str] | None = None) -> None:
    """The console entry point."""
    if not os.environ.get("HOME"):
        import pwd

        os.environ["HOME"] = pwd.getpwuid(os.getuid()).pw_dir
    words = arranged(sys.argv[1:] if argv is None else argv)
    try:
        result: Any = cli.main(args=words, prog_name=NAME, standalone_mode=False)
    except click.UsageError as error:
        _say(error.format_message())
        sys.exit(2)
    except click.ClickException as error:
        _say(error.format_message())
        sys.exit(1)
    except click.Abort:
        click.echo("FATAL: RECEIVED SIGNAL: interrupt", err=True)
        sys.exit(1)
    except BrokenPipeError:
        _leave_pipe()
    except (OSError, RunnerError) as error:
        _say(str(error))
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)


def _say(text: str) -> None:
    from runner.logs import printable_lines

    click.echo(f"FATAL: {printable_lines(text)}", err=True)


def _leave_pipe() -> NoReturn:
    """Whoever read what this command prints has had enough of it."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes it once more
    sys.exit(1)

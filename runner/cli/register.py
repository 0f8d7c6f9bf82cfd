"""``pyrunner register``: make GitLab and the configuration know a runner (``config-cli-daemon.md`` 9.4)."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import click
import structlog

from executors.registry import KINDS
from runner.cli.context import ask, begin, check_writable, fail, info_of, read_config, system_id
from runner.cli.flags import runner_options, runner_values, spelled
from runner.config.diagnostics import Severity
from runner.config.edit import append_runner, runner_text, set_runner_values
from runner.config.load import parse
from runner.config.model import Config, RunnerConfig
from runner.config.schema import LATER_EXECUTORS, OPEN_TABLES, REFUSED_EXECUTORS
from runner.config.tables import table_keys
from runner.coordinator.info import runner_info
from runner.coordinator.registration import CallResult, Credentials, is_created_token, unregister, verify
from runner.coordinator.registration import register as register_call
from runner.urls import is_same_server

log = structlog.get_logger()

ACCESS_LEVELS = ("", "not_protected", "ref_protected")
RESERVED = (
    "Runner configuration other than name and executor configuration is reserved (specifically --locked, "
    "--access-level, --run-untagged, --maximum-timeout, --paused, --tag-list, and --maintenance-note) and cannot be "
    "specified when registering with a runner authentication token. This configuration is specified on the GitLab server."
)
TEMPLATE_ERROR = "Could not handle configuration merging from template file"


@click.command("register")
@click.option("-c", "--config", help="Configuration file")
@click.option("-n", "--non-interactive", is_flag=True, envvar="REGISTER_NON_INTERACTIVE", help="Never ask")
@click.option("-r", "--registration-token", envvar="REGISTRATION_TOKEN", help="Registration token")
@click.option("--template-config", envvar="TEMPLATE_CONFIG_FILE", help="File whose one runner gives what is missing")
@click.option("--leave-runner", is_flag=True, envvar="REGISTER_LEAVE_RUNNER", help="Do not undo a failed registration")
@click.option("--tag-list", envvar="RUNNER_TAG_LIST", help="Tags, comma-separated")
@click.option("--run-untagged", type=bool, is_flag=False, flag_value="true", envvar="REGISTER_RUN_UNTAGGED")
@click.option("--locked", type=bool, is_flag=False, flag_value="true", envvar="REGISTER_LOCKED")
@click.option("--access-level", envvar="REGISTER_ACCESS_LEVEL", default="", help="not_protected or ref_protected")
@click.option("--maximum-timeout", type=int, envvar="REGISTER_MAXIMUM_TIMEOUT", help="Seconds")
@click.option("--paused", type=bool, is_flag=False, flag_value="true", envvar="REGISTER_PAUSED")
@click.option("--maintenance-note", envvar="REGISTER_MAINTENANCE_NOTE", help="A note for administrators")
@click.option("--replace", is_flag=True, help="Update the entry that has this token already")
@click.option("--allow-duplicate", is_flag=True, help="Add another entry with a token that is there already")
@runner_options
@click.pass_context
def command(ctx: click.Context, /, **parameters: Any) -> int:
    """Register a runner with GitLab."""
    location = begin(ctx, parameters["config"])
    if location.is_fallback:
        fail(f"registering would hide the runners of {location.path}: name a file with --config")
    if parameters["access_level"] not in ACCESS_LEVELS:
        fail("Given access-level is not valid. Refer to gitlab-runner register -h for the correct options.")
    return _Registration(location.path, parameters).run()


class _Registration:
    """One registration: what was given, what is asked for, what is undone when it fails."""

    def __init__(self, path: Path, parameters: dict[str, Any]) -> None:
        self._path = path
        self._given = parameters
        self._interactive = not parameters["non_interactive"]
        self._values: dict[str, Any] = {}
        self._config = Config(path=path)
        self._system_id = ""

    def run(self) -> int:
        """The whole flow; 0 or an exception."""
        self._values = runner_values(self._given)
        self._merge_template()
        self._config = read_config(self._path)
        check_writable(self._path, may_be_made=True)
        self._system_id = system_id(self._path)
        self._values["url"] = self._need("url", "Enter the GitLab instance URL (for example, https://gitlab.com/):")
        self._find_token()
        self._check_reserved()
        self._check_duplicate()
        self._check_values()
        undo = self._register()
        try:
            self._find_executor()
            self._complete_table()
            self._save()
        except (Exception, KeyboardInterrupt):
            if not self._given["leave_runner"]:
                undo()
            raise
        self._say_done()
        return 0

    # What is needed

    def _need(self, key: str, question: str, *, required: bool = True) -> str:
        """A value that was given, or the answer to a question."""
        current = str(self._values.get(key, "") or "")
        if not self._interactive:
            if required and not current:
                fail(f"The {key} needs to be entered")
            return current
        while True:
            answer = _prompt(question, current)
            if answer or not required:
                return answer

    def _find_token(self) -> None:
        token = self._values.get("token", "")
        registration = self._given["registration_token"] or ""
        if is_created_token(registration) and not token:
            token = self._values["token"] = registration
            self._given["legacy_compatible"] = True
        if token or registration:
            return
        if not self._interactive:
            fail("The registration-token needs to be entered")
        while not (answer := _prompt("Enter the registration token:", "")):
            pass
        if is_created_token(answer):
            self._values["token"] = answer
        else:
            self._given["registration_token"] = answer

    def _find_executor(self) -> None:
        names = ", ".join(sorted(KINDS))
        while True:
            self._values["executor"] = self._need("executor", f"Enter an executor: {names}:")
            executor = self._values["executor"]
            if executor in KINDS:
                return
            known = (*LATER_EXECUTORS, *REFUSED_EXECUTORS)
            text = f"executor {executor!r} is not supported" if executor in known else "Invalid executor specified"
            if not self._interactive:
                fail(f"{text} (supported: {names})")
            log.error(text)

    def _complete_table(self) -> None:
        """Ask for what the executor cannot do without, and add what it writes by itself."""
        kind = KINDS[self._values["executor"]]
        if kind.config is None or kind.table is None:
            return
        values = self._values.setdefault(kind.table, {})
        for key in table_keys(kind):
            if not key.ask:
                continue
            current = str(values.get(key.name, "") or "")
            if not self._interactive and not current:
                fail(f"The {key.flag} needs to be entered")
            while self._interactive and not (current := _prompt(key.ask, current)):
                pass
            values[key.name] = current
        self._values[kind.table] = kind.config().completed(values)

    def _name(self, question: str) -> None:
        self._values.setdefault("name", socket.gethostname())
        if self._interactive:
            self._values["name"] = _prompt(question, self._values["name"])

    # Checks

    def _merge_template(self) -> None:
        """Fill what was not given from the one runner of the template."""
        template = self._given["template_config"]
        if not template:
            return
        import tomllib

        try:
            document = tomllib.loads(Path(template).read_bytes().decode("utf-8-sig"))
        except FileNotFoundError:
            document = {}
        except (OSError, ValueError) as error:
            fail(f"{TEMPLATE_ERROR}: couldn't load configuration template file: {error}")
        runners: Any = next((value for key, value in document.items() if key.lower() == "runners"), [])
        if not isinstance(runners, list) or len(runners) != 1 or not isinstance(runners[0], dict):
            fail(f"{TEMPLATE_ERROR}: configuration template must contain exactly one [[runners]] entry")
        _fill(self._values, {key: value for key, value in spelled(runners[0]).items() if key not in ("token", "name")})

    def _check_values(self) -> None:
        """Refuse what would make an entry that cannot be used, while GitLab knows nothing of it yet."""
        executor = self._values.get("executor", "")
        values = {**self._values, "token": "to-come", "executor": executor if executor in KINDS else "shell"}
        for found in parse(runner_text(values).encode(), self._path, environ=os.environ, executors=KINDS).diagnostics:
            if found.severity is Severity.ERROR:
                fail(f"the runner could not be used: {found.text}")
            if found.code in ("unknown-key", "unknown-shell", "coerced-type"):
                log.warning(f"{found.text}{f' ({found.hint})' if found.hint else ''}")

    def _check_reserved(self) -> None:
        """Options that only GitLab decides over for a created runner."""
        if not is_created_token(self._values.get("token", "")):
            return
        given = self._given
        used = [given[name] for name in ("tag_list", "maintenance_note", "access_level", "maximum_timeout")]
        flags = [given["run_untagged"], given["paused"], given["locked"] is False]
        if not any(used) and not any(flags):
            return
        if given.get("legacy_compatible"):
            log.warning(
                "You have specified an authentication token in the legacy parameter --registration-token. "
                "This has triggered the 'legacy-compatible registration process' which has resulted in the "
                "following command line parameters being ignored: --locked, --access-level, --run-untagged, "
                "--maximum-timeout, --paused, --tag-list, and --maintenance-note."
            )
            return
        fail(RESERVED)

    def _check_duplicate(self) -> None:
        token, url = self._values.get("token", ""), self._values["url"]
        known = [one for one in self._config.runners if token and one.token == token and is_same_server(one.url, url)]
        if not known or self._given["allow_duplicate"] or self._given["replace"]:
            return
        text = f"a runner with this token is configured already ({known[0].name!r}, line {known[0].line})"
        if not self._interactive:
            fail(f"{text}: use --replace to update it, or --allow-duplicate")
        if _prompt(f"{text}. Replace it? (yes, no)", "no").lower() not in ("y", "yes"):
            fail(text)
        self._given["replace"] = True

    # GitLab

    def _runner(self) -> RunnerConfig:
        values = self._values
        return RunnerConfig(
            name=values.get("name", ""),
            url=values["url"],
            token=values.get("token", ""),
            executor=values.get("executor", ""),
            shell=values.get("shell", ""),
            tls_ca_file=values.get("tls-ca-file", ""),
            tls_cert_file=values.get("tls-cert-file", ""),
            tls_key_file=values.get("tls-key-file", ""),
        )

    def _register(self) -> Any:
        """The server's part; returns what takes it back."""
        if self._values.get("token"):
            self._verify()
        else:
            self._register_legacy()
        runner = self._runner()

        def undo() -> None:
            result = ask(runner, self._path, lambda http: unregister(http, runner.token, self._system_id))
            if not result.ok:
                log.error("the registration could not be taken back", status=result.text or result.status)

        return undo

    def _verify(self) -> None:
        created = is_created_token(self._values["token"])
        if not created:
            log.info("Token specified trying to verify runner...")
            log.warning("If you want to register use the '-r' instead of '-t'.")
        runner = self._runner()
        result = ask(runner, self._path, lambda http: verify(http, runner.token, self._system_id, info_of(runner)))
        if not result.ok or (created and not result.credentials.id):
            self._say_failed(result)
            if result.refused and created:
                fail("Failed to verify the runner.")
            fail("Failed to verify the runner. You may be having network problems.")
        word = "valid" if created else "alive"
        log.info(f"Verifying runner... is {word}", runner=runner.short_token)
        if created:
            self._keep(result.credentials, with_token=False)
            self._name("Enter a name for the runner. This is stored only in the local config.toml file:")
        else:
            self._values.setdefault("name", socket.gethostname())

    def _register_legacy(self) -> None:
        given = self._given
        self._name("Enter a description for the runner:")
        if self._interactive:
            given["tag_list"] = _prompt("Enter tags for the runner (comma-separated):", given["tag_list"] or "")
            note = "Enter optional maintenance note for the runner:"
            given["maintenance_note"] = _prompt(note, given["maintenance_note"] or "")
        log.warning(
            "Support for registration tokens and runner parameters in the 'register' command has been deprecated in "
            "GitLab Runner 15.6 and will be replaced with support for authentication tokens."
        )
        parameters = {
            "description": self._values["name"],
            "maintenance_note": given["maintenance_note"] or "",
            "tag_list": given["tag_list"] or "",
            "run_untagged": bool(given["run_untagged"]) or not given["tag_list"],
            "locked": given["locked"] is not False,
            "access_level": given["access_level"] or "",
            "maximum_timeout": given["maximum_timeout"] or 0,
            "paused": bool(given["paused"]),
        }
        always = ("run_untagged", "locked", "paused")
        body = {key: value for key, value in parameters.items() if value or key in always}
        runner = self._runner()
        token = given["registration_token"]
        result = ask(runner, self._path, lambda http: register_call(http, token, body, runner_info(None)))
        if not result.ok:
            self._say_failed(result)
            fail("Failed to register the runner.")
        log.info("Registering runner... succeeded")
        self._keep(result.credentials, with_token=True)

    def _keep(self, credentials: Credentials, *, with_token: bool) -> None:
        self._values["id"] = credentials.id
        if with_token:
            self._values["token"] = credentials.token
        self._values["token_obtained_at"] = credentials.obtained_at
        if credentials.expires_at is not None:
            self._values["token_expires_at"] = credentials.expires_at

    def _say_failed(self, result: CallResult) -> None:
        text = "forbidden (check the token)" if result.refused else "failed"
        log.error(f"Registering runner... {text}", status=result.text)

    # The file

    def _save(self) -> None:
        first = ("name", "url", "id", "token", "token_obtained_at", "token_expires_at", "executor")
        ordered = {key: self._values[key] for key in first if key in self._values}
        others = OPEN_TABLES - {"go", KINDS[ordered["executor"]].table}
        ordered |= {key: value for key, value in self._values.items() if key not in ordered and key not in others}
        token, url = ordered["token"], ordered["url"]
        for index, runner in enumerate(self._config.runners if self._given["replace"] else ()):
            if runner.token == token and is_same_server(runner.url, url):
                set_runner_values(self._path, index, ordered)
                return
        append_runner(self._path, ordered)

    def _say_done(self) -> None:
        for key in ("limit", "request_concurrency"):
            value = self._values.get(key) or 0
            if value > self._config.concurrent:
                log.warning(f"Specified {key} ({value}) larger then current concurrent limit ({self._config.concurrent})")
        log.info(
            "Runner registered successfully. Feel free to start it, but if it's running already the config should be "
            "automatically reloaded!"
        )
        log.info(f'Configuration (with the authentication token) was saved in "{self._path}"')


def _fill(values: dict[str, Any], template: dict[str, Any]) -> None:
    """Put what the template has where nothing was given, key by key."""
    for key, value in template.items():
        if isinstance(value, dict):
            inner = values.setdefault(key, {})
            if isinstance(inner, dict):
                _fill(inner, value)
        elif not values.get(key):
            values[key] = value


def _prompt(question: str, current: str) -> str:
    """Ask on standard error; an empty answer keeps what is there."""
    click.echo(question, err=True)
    if current:
        click.echo(f"[{current}]: ", nl=False, err=True)
    line = sys.stdin.readline()
    if not line:
        fail("Unexpected EOF. Did you mean to use --non-interactive?")
    return line.strip() or current

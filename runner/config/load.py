"""Reads the configuration file: one bad entry never stops the others (``config-cli-daemon.md`` 1, 8.1)."""

from __future__ import annotations

import hashlib
import math
import os
import re
import stat
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from executors.registry import Kind
from runner.config import schema
from runner.config.cache import cache
from runner.config.checks import check_executor, check_labels, check_token, check_url, readable_by_all
from runner.config.diagnostics import Diagnostic, Severity, did_you_mean
from runner.config.duration import parse_duration
from runner.config.go import go
from runner.config.model import (
    ArtifactConfig,
    Config,
    DaemonSettings,
    DiskConfig,
    GitConfig,
    RunnerConfig,
    RunnerSettings,
    default_state_dir,
)
from runner.config.positions import Positions
from runner.config.queuing import queuing_limits
from runner.config.schema import Key, Type
from runner.config.size import parse_size
from runner.config.tables import executor_table

_REFERENCE = re.compile(r"\$(?:\{([^}]*)\}|([A-Za-z_][A-Za-z0-9_]*))")
_POSITION = re.compile(r"\(at line (\d+), column (\d+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A configuration, None when it cannot be used at all, and everything that was found."""

    config: Config | None
    diagnostics: tuple[Diagnostic, ...]

    @property
    def errors(self) -> list[Diagnostic]:
        """Findings that take something out of use."""
        return [found for found in self.diagnostics if found.severity is Severity.ERROR]


def load(path: Path, *, environ: Mapping[str, str], executors: Mapping[str, Kind]) -> Loaded:
    """Read and check a file. Raises :class:`OSError` when it cannot be read."""
    with path.open("rb") as file:
        is_open = bool(os.fstat(file.fileno()).st_mode & stat.S_IROTH)
        loaded = parse(file.read(), path, environ=environ, executors=executors)
    found = readable_by_all(loaded.config) if is_open and loaded.config is not None else None
    return replace(loaded, diagnostics=(found, *loaded.diagnostics)) if found is not None else loaded


def parse(raw: bytes, path: Path, *, environ: Mapping[str, str], executors: Mapping[str, Kind]) -> Loaded:
    """The same for content that is at hand already."""
    if b"\0" in raw[:64]:
        return _unusable(path, "syntax", "the file is not UTF-8 text (it looks like UTF-16)")
    try:
        text = raw.decode("utf-8-sig")
        document = tomllib.loads(text.replace("\r\n", "\n"))
    except UnicodeDecodeError as error:
        return _unusable(path, "syntax", f"the file is not UTF-8 text: {error.reason} at byte {error.start}")
    except tomllib.TOMLDecodeError as error:
        place = _POSITION.search(str(error))
        line, column = (int(place.group(1)), int(place.group(2))) if place else (0, 0)
        return _unusable(path, "syntax", _POSITION.sub("", str(error)).strip(), line, column)
    except RecursionError:
        return _unusable(path, "syntax", "values are nested too deeply")
    reader = _Reader(path=path, positions=Positions(text), environ=environ, executors=executors)
    config = reader.config(document, hashlib.sha256(raw).hexdigest())
    found = tuple(sorted(reader.found, key=lambda one: (one.line, one.column)))
    return Loaded(config=None if reader.blocked else config, diagnostics=found)


def _unusable(path: Path, code: str, text: str, line: int = 0, column: int = 0) -> Loaded:
    found = Diagnostic(path=path, severity=Severity.ERROR, code=code, text=text, line=line, column=column)
    return Loaded(config=None, diagnostics=(found,))


@dataclass(slots=True)
class _Reader:
    """Turns the document into the model and collects findings. ``blocked``: the file cannot be used at all."""

    path: Path
    positions: Positions
    environ: Mapping[str, str]
    executors: Mapping[str, Kind]
    found: list[Diagnostic] = field(default_factory=list)
    blocked: bool = False

    def report(self, severity: Severity, code: str, text: str, *place: str | int, hint: str = "") -> None:
        line, column = self.positions.find(*place)
        self.found.append(
            Diagnostic(path=self.path, severity=severity, code=code, text=text, line=line, column=column, hint=hint)
        )

    def warn(self, code: str, text: str, *place: str | int, hint: str = "") -> None:
        self.report(Severity.WARNING, code, text, *place, hint=hint)

    def fail(self, code: str, text: str, *place: str | int, hint: str = "") -> None:
        self.report(Severity.ERROR, code, text, *place, hint=hint)

    def block(self, code: str, text: str, *place: str | int) -> None:
        self.blocked = True
        self.fail(code, text, *place)

    # Values

    def table(
        self, raw: Mapping[str, Any], keys: tuple[Key, ...], *place: str | int, known: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """Typed values by their names in lower case with underscores; unknown and unusable ones are reported."""
        names = {key.name.lower(): key for key in keys}
        values: dict[str, Any] = {}
        for name, value in raw.items():
            lower = name.lower()
            if lower in known:
                values[lower] = value
                continue
            key = names.get(lower)
            if key is None:
                hint = did_you_mean(name, [*names, *known])
                self.warn("unknown-key", f'"{name}" is not a known key here', *place, name, hint=hint)
            elif key.removed:
                text = f'"{name}" is no longer used'
                self.warn("removed-key", text, *place, name, hint=f'its new name is "{key.removed}"')
            else:
                converted = self.convert(value, key, (*place, name))
                if converted is not None:
                    values[lower.replace("-", "_")] = converted
        return values

    def convert(self, value: Any, key: Key, place: tuple[str | int, ...]) -> Any:
        """A value of the key's type, None when it cannot be one."""
        if key.type is Type.TABLES and isinstance(value, list) and all(isinstance(item, dict) for item in value):
            return [self.table(item, key.inner, *place, index) for index, item in enumerate(value)]
        converted = _exact(value, key.type)
        if converted is not None:
            return converted
        converted = _coerced(value, key.type)
        if converted is not None:
            code = "bare-integer-duration" if key.type is Type.DURATION else "coerced-type"
            hint = f"{value} means {value} ns" if key.type is Type.DURATION else f"expected {_article(key.type)}"
            self.warn(code, f'"{key.name}" is {_described(value)}', *place, hint=hint)
            return converted
        code = "bad-duration" if key.type is Type.DURATION else "wrong-type"
        self.fail(code, f'"{key.name}" must be {_article(key.type)}, not {_described(value)}', *place)
        return None

    # Tables

    def config(self, document: Mapping[str, Any], content_hash: str) -> Config:
        values = self.table(document, schema.GLOBAL)
        self._check_global(values)
        runners = values.get("runners", [])
        if not isinstance(runners, list):
            self.block("wrong-type", '"runners" must be a list of tables: write [[runners]]', "runners")
            runners = []
        labels = values.get("labels", {})
        interval = values.get("check_interval", 0)
        shutdown = values.get("shutdown_timeout", 0)
        entries = tuple(self._runner(raw, index, labels) for index, raw in enumerate(runners))
        self._check_together(values, entries)
        return Config(
            path=self.path,
            concurrent=values.get("concurrent", 1),
            check_interval_s=float(interval) if interval > 0 else 3.0,
            log_level=values.get("log_level"),
            log_format=values.get("log_format"),
            shutdown_timeout_s=float(shutdown) if shutdown > 0 else 30.0,
            listen_address=values.get("listen_address") or None,
            connection_max_age_s=values.get("connection_max_age", 900.0),
            labels=labels,
            pyrunner=self._daemon(values.get("pyrunner", {})),
            runners=entries,
            content_hash=content_hash,
        )

    def _check_global(self, values: Mapping[str, Any]) -> None:
        if values.get("concurrent", 1) < 1:
            self.block("bad-value", '"concurrent" must be at least 1', "concurrent")
        level = values.get("log_level")
        if level is not None and level.lower() not in schema.LOG_LEVELS:
            self.block("bad-value", f'"log_level" must be one of {", ".join(schema.LOG_LEVELS)}', "log_level")
        form = values.get("log_format")
        if form is not None and form not in schema.LOG_FORMATS:
            self.block("bad-value", f'"log_format" must be one of {", ".join(schema.LOG_FORMATS)}', "log_format")

    def _check_together(self, values: Mapping[str, Any], runners: tuple[RunnerConfig, ...]) -> None:
        seen: dict[tuple[str, str], int] = {}
        for index, runner in enumerate(runners):
            if not runner.token:
                continue
            first = seen.setdefault((runner.url, runner.token), runner.line)
            if first != runner.line:
                text = f'runner "{runner.name}" has the token of the runner in line {first}'
                self.warn("duplicate-token", text, "runners", index, "token")
        concurrent = values.get("concurrent", 1)
        if 0 < concurrent < len(runners):
            text = f"{len(runners)} runners share {concurrent} slots: long polls make them wait for each other"
            self.warn("concurrent<runners", text, "concurrent")

    def _daemon(self, raw: Any) -> DaemonSettings:
        values = self.table(raw, schema.PYRUNNER, "pyrunner")
        mode = values.get("shutdown_mode", "drain")
        if mode not in ("drain", "detach", "abort"):
            self.block("bad-value", '"shutdown_mode" must be drain, detach or abort', "pyrunner", "shutdown_mode")
        return DaemonSettings(
            graceful_shutdown_timeout_s=values.get("graceful_shutdown_timeout", 3600.0),
            interrupted_failure_reason=values.get("interrupted_failure_reason", "runner_system_failure"),
            control_socket=values.get("control_socket"),
            state_dir=Path(values["state_dir"]) if values.get("state_dir") else default_state_dir(),
            shutdown_mode=mode,
            system_id=values.get("system_id", ""),
            pass_env=tuple(values.get("pass_env", ())),
            debug_endpoints=values.get("debug_endpoints", False),
            disk=self._disk(values.get("disk", {})),
        )

    def _disk(self, raw: Mapping[str, Any]) -> DiskConfig:
        sizes = self.table(raw, schema.DISK, "pyrunner", "disk")
        return DiskConfig(min_free_bytes=sizes.pop("min_free", 0), budgets=sizes)

    def _runner(self, raw: Any, index: int, labels: Mapping[str, str]) -> RunnerConfig:
        place = ("runners", index)
        before = len([one for one in self.found if one.severity is Severity.ERROR])
        if not isinstance(raw, dict):
            self.fail("wrong-type", "a runner must be a table", *place)
            raw = {}
        known = schema.OPEN_TABLES | set(schema.SUB_TABLES)
        values = self.table(raw, schema.RUNNER, *place, known=frozenset(known))
        line, _ = self.positions.find(*place)
        own = self._own(values.get("pyrunner", {}), place)
        url, token, references = self._identity(values, own, place)
        executor = values.get("executor", "")
        merged = {**labels, **values.get("labels", {})}
        check_executor(self, self.executors, values, place)
        tables = {name: values[name] for name in schema.OPEN_TABLES if name in values}
        if executor in self.executors:
            tables |= executor_table(self, self.executors[executor], tables, place)
        check_labels(self, merged, place)
        stores = go(self, values.get("go"), place)
        errors = [one for one in self.found if one.severity is Severity.ERROR][before:]
        return RunnerConfig(
            **self._scalars(values),
            url=url,
            token=token,
            labels=merged,
            custom_build_dir_enabled=self._sub(values, "custom_build_dir", place).get("enabled"),
            artifact=self._artifact(values, place),
            git=GitConfig(**self._sub(values, "git", place)),
            cache=cache(self, values.get("cache", {}), place),
            go=stores,
            queuing_limits=queuing_limits(self, values.get("monitoring"), place),
            pyrunner=own,
            tables=tables,
            line=line,
            disabled=errors[0].text if errors else None,
            token_reference=references,
        )

    def _scalars(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Keys that go into the entry by their own names; durations get their unit."""
        skipped = {"url", "token", "labels", "monitoring", "referees", "experimental"} | schema.OPEN_TABLES
        skipped |= set(schema.SUB_TABLES) | {"use_slot_cgroups", "slot_cgroup_template", "step_runner_image"}
        found = {name: value for name, value in values.items() if name not in skipped}
        for name in ("unhealthy_interval", "prepare_timeout", "get_sources_timeout"):
            if name in found:
                found[f"{name}_s"] = found.pop(name)
        for name, default in (("unhealthy_requests_limit", 3), ("job_status_final_update_retry_limit", 10)):
            if found.get(name, default) < 1:
                found[name] = default
        found["request_concurrency"] = max(found.get("request_concurrency", 1), 1)
        found["output_limit"] = found.get("output_limit", 0) or 4096
        found["environment"] = tuple(found.get("environment", ()))
        return found

    def _identity(
        self, values: Mapping[str, Any], own: RunnerSettings, place: tuple[str | int, ...]
    ) -> tuple[str, str, frozenset[str]]:
        references: set[str] = set()
        texts = []
        for name in ("url", "token"):
            text = self._expanded(values.get(name, ""), references, (*place, name))
            texts.append(text)
        url, token = texts
        if not token and own.token_file:
            token = self._token_from(own.token_file, place)
        if not url:
            self.fail("missing-url", f'runner "{values.get("name", "")}" has no url', *place)
        else:
            check_url(self, url, *place, "url")
        if not token.strip():
            self.warn("missing-token", f'runner "{values.get("name", "")}" has no token and is never asked', *place)
        else:
            check_token(self, token, values.get("name", ""), *place, "token")
        if url.rstrip("/").endswith("/ci"):
            self.warn("legacy-ci-suffix", "the suffix /ci of the url is not needed any more", *place, "url")
        return url, token, frozenset(references)

    def _expanded(self, text: str, references: set[str], place: tuple[str | int, ...]) -> str:
        def replace(match: re.Match[str]) -> str:
            name = match.group(1) if match.group(1) is not None else match.group(2)
            references.add(name)
            if name not in self.environ:
                self.fail("undefined-env", f"the environment variable {name} is not set", *place)
            return self.environ.get(name, "")

        return _REFERENCE.sub(replace, text)

    def _token_from(self, path: str, place: tuple[str | int, ...]) -> str:
        try:
            return Path(self._expanded(path, set(), place)).read_text().strip()
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is not text"
            self.fail("unreadable-token-file", f"cannot read token_file {path}: {why}", *place, "pyrunner")
            return ""

    def _sub(self, values: Mapping[str, Any], name: str, place: tuple[str | int, ...]) -> dict[str, Any]:
        raw = values.get(name, {})
        return self.table(raw, schema.SUB_TABLES[name], *place, name) if isinstance(raw, dict) else {}

    def _artifact(self, values: Mapping[str, Any], place: tuple[str | int, ...]) -> ArtifactConfig:
        found = self._sub(values, "artifact", place)
        return ArtifactConfig(**{f"{name}_s": value for name, value in found.items()})

    def _own(self, raw: Any, place: tuple[str | int, ...]) -> RunnerSettings:
        values = self._sub({"pyrunner": raw}, "pyrunner", place)
        if "term_grace" in values:
            values["term_grace_s"] = values.pop("term_grace")
        return RunnerSettings(**values)


def _exact(value: Any, kind: Type) -> Any:
    """The value itself where it has the type (durations in seconds); None otherwise."""
    match kind:
        case Type.STRING:
            return value if isinstance(value, str) else None
        case Type.INTEGER | Type.SECONDS:
            return value if isinstance(value, int) and not isinstance(value, bool) else None
        case Type.BOOLEAN | Type.OPTIONAL_BOOLEAN:
            return value if isinstance(value, bool) else None
        case Type.DURATION:
            return _duration(value) if isinstance(value, str) else None
        case Type.SIZE:
            return _size(value)
        case Type.TEXT_OR_LIST if isinstance(value, str):
            return [value]
        case Type.LIST | Type.TEXT_OR_LIST:
            return value if isinstance(value, list) and all(isinstance(item, str) for item in value) else None
        case Type.LIST_MAP:
            fits = isinstance(value, dict) and all(_exact(item, Type.LIST) is not None for item in value.values())
            return value if fits else None
        case Type.STRING_MAP | Type.BOOLEAN_MAP:
            inner = str if kind is Type.STRING_MAP else bool
            fits = isinstance(value, dict) and all(isinstance(item, inner) for item in value.values())
            return value if fits else None
        case Type.DATETIME:
            return _datetime(value)
        case Type.TABLE:
            return value if isinstance(value, dict) else None
        case Type.TABLES:
            return None
        case Type.ANY:
            return value


def _coerced(value: Any, kind: Type) -> Any:
    """What was certainly meant."""
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    match kind:
        case Type.STRING if is_integer:
            return str(value)
        case Type.INTEGER | Type.SECONDS if isinstance(value, str) and re.fullmatch(r"-?[0-9]+", value):
            return int(value)
        case Type.BOOLEAN | Type.OPTIONAL_BOOLEAN if value in ("true", "false"):
            return value == "true"
        case Type.LIST if isinstance(value, str):
            return [value]
        case Type.DURATION if is_integer:
            return value / 1e9
        case Type.DURATION if isinstance(value, str):
            return _duration(re.sub(r"\s+", "", value).replace("min", "m").replace("sec", "s"))
        case Type.STRING_MAP if isinstance(value, dict):
            scalars = all(isinstance(item, str | int | float) for item in value.values())
            return {key: str(item) for key, item in value.items()} if scalars else None
        case _:
            return None


def _duration(text: str) -> float | None:
    if text == "infinity":
        return math.inf
    try:
        return parse_duration(text)
    except ValueError:
        return None


def _size(value: Any) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value if value >= 0 else None
    try:
        return parse_size(value) if isinstance(value, str) else None
    except ValueError:
        return None


def _datetime(value: Any) -> datetime | None:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.replace("Z", "+00:00"))
        except ValueError:
            return None
    if not isinstance(value, datetime):
        return None
    return value if value.tzinfo else value.replace(tzinfo=UTC)


def _described(value: Any) -> str:
    match value:
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case str():
            return f"the text {value!r}" if len(value) < 40 else "a text"
        case list():
            return "a list"
        case dict():
            return "a table"
        case _:
            return f"a {type(value).__name__}"


def _article(kind: Type) -> str:
    return f"an {kind}" if kind.value[0] in "aeiou" else f"a {kind}"

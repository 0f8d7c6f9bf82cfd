"""Values of the configuration as the engine wants them: CPUs, devices, limits, profiles (``docker-executor.md`` 1.3, 1.4).

What cannot be read raises :class:`ExecutorError`: its message says what it is.
"""

from __future__ import annotations

import csv
import ipaddress
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from executors.errors import ExecutorError, InvalidSpec, PrepareError

LOG_OPTIONS = ("env", "labels")
ISOLATIONS = ("", "default", "process", "hyperv")
_NANO = 10**9
_RATIONAL = re.compile(r"[+-]?(?:[0-9]+/[0-9]+|(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?)")
_MAC = re.compile(r"[0-9a-f]{2}(?:[:-][0-9a-f]{2}){5}|[0-9a-f]{4}(?:\.[0-9a-f]{4}){2}", re.IGNORECASE)


def nano_cpus(text: str) -> int:
    """``0.5`` or ``1/2`` as billionths of a CPU; 0 for an empty text."""
    if not text:
        return 0
    try:
        value = Fraction(text) if _RATIONAL.fullmatch(text) else None
    except (ValueError, ZeroDivisionError):
        value = None
    if value is None:
        raise ExecutorError(f"failed to parse {text} as a rational number")
    nano = value * _NANO
    if nano.denominator != 1:
        raise ExecutorError("value is too precise")
    return int(nano)


def devices(entries: Iterable[str]) -> list[dict[str, str]]:
    """``host[:container[:permissions]]``, for the engine's ``Devices``. Raises :class:`PrepareError`."""
    found = []
    for entry in entries:
        parts = entry.split(":")
        if len(parts) > 3:
            raise PrepareError(f'failed to parse device string "{entry}": too many colons')
        found.append(
            {
                "PathOnHost": parts[0],
                "PathInContainer": parts[1] if len(parts) > 1 else parts[0],
                "CgroupPermissions": parts[2] if len(parts) > 2 else "rwm",
            }
        )
    return found


def gpu_requests(text: str) -> list[dict[str, Any]]:
    """``all``, ``2``, ``device=0,1``, ``"driver=x,count=2"``: one request for the engine's ``DeviceRequests``."""
    if not text:
        return []
    request: dict[str, Any] = {"Driver": "", "Count": 0, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}
    seen: set[str] = set()
    for field in next(csv.reader([text])):
        key, equals, value = field.partition("=")
        if not equals and request["DeviceIDs"] is not None and "count" not in seen:
            request["DeviceIDs"].append(key)
            continue
        if key in seen:
            raise ExecutorError(f"parsing gpus \"{text}\": gpu request key '{key}' can be specified only once")
        seen.add(key)
        if not equals:
            seen.add("count")
            request["Count"] = _gpu_count(key, text)
        elif key == "count":
            request["Count"] = _gpu_count(value, text)
        elif key == "driver":
            request["Driver"] = value
        elif key == "device":
            request["DeviceIDs"] = value.split(",")
        elif key == "capabilities":
            request["Capabilities"] = [[*value.split(","), "gpu"]]
        elif key == "options":
            pairs = (option.partition("=") for option in next(csv.reader([value]), []))
            request["Options"] = {name: setting for name, _, setting in pairs}
        else:
            raise ExecutorError(f"parsing gpus \"{text}\": unexpected key '{key}' in '{field}'")
    if "count" not in seen and request["DeviceIDs"] is None:
        request["Count"] = 1
    return [request]


def _gpu_count(value: str, text: str) -> int:
    if value == "all":
        return -1
    try:
        return int(value)
    except ValueError:
        raise ExecutorError(f'parsing gpus "{text}": count must be "all" or a whole number, not "{value}"') from None


def ulimits(limits: Mapping[str, str]) -> list[dict[str, Any]]:
    """``soft[:hard]`` by name, for the engine's ``Ulimits``."""
    found = []
    for name, text in limits.items():
        soft, colon, hard = text.partition(":")
        try:
            found.append({"Name": name, "Soft": int(soft), "Hard": int(hard if colon else soft)})
        except ValueError:
            raise ExecutorError(f'ulimit {name} = "{text}" is not "soft" or "soft:hard" with whole numbers') from None
    return found


def name_servers(addresses: Sequence[str]) -> list[str]:
    """The addresses themselves. Raises :class:`InvalidSpec` for one that is none."""
    for address in addresses:
        try:
            ipaddress.ip_address(address)
        except ValueError:
            text = f'invalid DNS server address "{address}": ParseAddr("{address}"): unable to parse IP'
            raise InvalidSpec(text) from None
    return list(addresses)


def mac_address(text: str) -> str:
    """The address itself. Raises :class:`InvalidSpec` for one that is none."""
    if text and _MAC.fullmatch(text) is None:
        raise InvalidSpec(f'invalid MAC address "{text}": address {text}: invalid MAC address')
    return text


def isolation(text: str) -> str:
    """The isolation technology of Windows, as it is configured."""
    if text not in ISOLATIONS:
        valid = "the valid values are: 'process', 'hyperv', 'default' and an empty string"
        raise ExecutorError(f'the isolation value "{text}" is not valid. {valid}')
    return text


def log_options(options: Mapping[str, str]) -> dict[str, str]:
    """The options of the log driver that an administrator may set. Raises :class:`InvalidSpec` for others."""
    others = sorted(set(options) - set(LOG_OPTIONS))
    if others:
        known, found = (" ".join(f'"{name}"' for name in names) for names in (LOG_OPTIONS, others))
        text = f"invalid log options: only [{known}] are allowed, but found: [{found}]"
        raise InvalidSpec(f"creating docker log configuration: {text}")
    return dict(options)


def security_options(options: Iterable[str]) -> list[str]:
    """The options; a seccomp profile that is named by its file is read here, on the runner's side."""
    return [_security_option(option) for option in options]


def _security_option(option: str) -> str:
    name, _, value = option.partition("=")
    if name != "seccomp" or value in ("", "unconfined", "builtin") or value.lstrip().startswith("{"):
        return option
    what = "processing security options: failed to read seccomp profile from"
    try:
        profile = json.loads(Path(value).read_bytes())
    except OSError as error:
        raise ExecutorError(f"{what} {value}: open {value}: {os.strerror(error.errno or 0).lower()}") from error
    except ValueError as error:
        raise ExecutorError(f"{what} {value}: it is not JSON: {error}") from error
    return f"seccomp={json.dumps(profile, separators=(',', ':'))}"

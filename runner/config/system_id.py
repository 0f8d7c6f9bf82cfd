"""The identity of this host at GitLab, kept beside the configuration (``config-cli-daemon.md`` 15.2)."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import string
from dataclasses import dataclass
from pathlib import Path

PATTERN = re.compile(r"[sr]_[0-9a-zA-Z]{12}")
FILE_NAME = ".runner_system_id"
MACHINE_IDS = (Path("/var/lib/dbus/machine-id"), Path("/etc/machine-id"))
LENGTH = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemId:
    """``warning`` is why the id could not be saved."""

    value: str
    created: bool = False
    warning: str = ""


def load_system_id(config_path: Path, *, override: str = "") -> SystemId:
    """The id of the configuration's directory; a missing or malformed one is made and saved."""
    if override and PATTERN.fullmatch(override):
        return SystemId(value=override)
    path = config_path.parent / FILE_NAME
    try:
        known = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        known = ""
    if PATTERN.fullmatch(known):
        return SystemId(value=known)
    value = make_system_id()
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with open(fd, "w") as file:
            file.write(value)
    except OSError as error:
        text = (
            f"Couldn't save new system ID on state file. In order to reliably identify this runner in jobs with a known "
            f"identifier, please ensure there is a text file at {path} with the contents: {value} ({error.strerror})"
        )
        return SystemId(value=value, created=True, warning=text)
    return SystemId(value=value, created=True)


def make_system_id() -> str:
    """``s_`` and a keyed hash of the machine id, the same as the reference's; ``r_`` and chance without one."""
    for path in MACHINE_IDS:
        try:
            machine = path.read_text().strip()
        except OSError:
            continue
        if machine:
            return "s_" + hmac.new(machine.encode(), b"gitlab-runner", hashlib.sha256).hexdigest()[:LENGTH]
    return "r_" + "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(LENGTH))

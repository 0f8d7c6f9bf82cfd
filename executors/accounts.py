"""The account that jobs run as, and the environment that their processes start with."""

from __future__ import annotations

import fnmatch
import os
import pwd
import socket
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from executors.errors import InvalidSpec

# What a job may see of the daemon's environment (``config-cli-daemon.md`` 15.3).
PASSED = ("PATH", "LANG", "LANGUAGE", "LC_*", "TZ", "TERM", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
PASSED_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "no_proxy", "all_proxy")
IDENTITY = ("HOME", "USER", "LOGNAME", "SHELL")
# What service managers tell the daemon is not for jobs, whatever ``pass_env`` says.
NEVER = (
    "NOTIFY_SOCKET",
    "WATCHDOG_*",
    "LISTEN_*",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "CREDENTIALS_DIRECTORY",
    "PYRUNNER_*",
)
_CREDENTIALS = struct.Struct("3i")
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user of this host. ``switch`` tells that processes must change to it."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]
    home: str
    login: str
    switch: bool


def peer(sock: socket.socket) -> tuple[int, int, int]:
    """Process, user and group at the other end of a connected Unix socket, as they were when it was made; the process is 0
    where it is not in this name space."""
    pid, uid, gid = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    return pid, uid, gid


def account(name: str | None) -> Account:
    """The job user's account, None for the daemon's own. Raises :class:`InvalidSpec` when it cannot be used."""
    own = os.geteuid()
    try:
        entry = pwd.getpwuid(own) if name is None else pwd.getpwnam(name)
    except KeyError:
        if name is not None:
            raise InvalidSpec(f"the job user {name!r} does not exist on this host") from None
        return Account(name="", uid=own, gid=os.getegid(), groups=(), home="/", login="/bin/sh", switch=False)
    if entry.pw_uid != own and own != 0:
        raise InvalidSpec(f"jobs cannot run as {name!r}: the daemon is not root")
    return Account(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        groups=tuple(os.getgrouplist(entry.pw_name, entry.pw_gid)),
        home=entry.pw_dir,
        login=entry.pw_shell or "/bin/sh",
        switch=entry.pw_uid != own,
    )


def owner_name(uid: int) -> str:
    """The name of an account, its id where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def job_environment(
    user: Account, environ: Mapping[str, str], *, pass_env: Iterable[str], hidden: Iterable[str]
) -> dict[str, str]:
    """What a job's shell starts with: little of the daemon's environment, and who it is."""
    proxies = (*PASSED_PROXIES, *(name.upper() for name in PASSED_PROXIES))
    wanted = (*PASSED, *proxies, *IDENTITY, *pass_env)
    unwanted = (*NEVER, *hidden)
    found = {name: value for name, value in environ.items() if _matches(name, wanted) and not _matches(name, unwanted)}
    if user.switch:
        found.update(HOME=user.home, USER=user.name, LOGNAME=user.name, SHELL=user.login)
    found.setdefault("HOME", user.home)
    found.setdefault("PATH", DEFAULT_PATH)
    return found


def _matches(name: str, patterns: Iterable[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)

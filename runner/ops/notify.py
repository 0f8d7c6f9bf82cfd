"""Messages to the service manager: a datagram to ``$NOTIFY_SOCKET``."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

import structlog

log = structlog.get_logger()

SYSTEMD = Path("/run/systemd/system")


class Notifier:
    """Tells systemd how the daemon is; does nothing where no service manager listens."""

    def __init__(self, environ: Mapping[str, str], *, pid: int | None = None) -> None:
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_us = _watchdog_us(environ, os.getpid() if pid is None else pid)

    @property
    def watchdog_period_s(self) -> float | None:
        """How often :meth:`alive` must be called, None when nobody watches."""
        return self._watchdog_us / 2e6 if self._watchdog_us and self._address else None

    def ready(self) -> None:
        """Start-up, or a reload, is over."""
        self._send("READY=1")

    def reloading(self) -> None:
        """A reload begins."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self) -> None:
        """Shutdown has begun."""
        self._send("STOPPING=1")

    def status(self, text: str) -> None:
        """A line for ``systemctl status``."""
        self._send(f"STATUS={text}")

    def alive(self) -> None:
        """The event loop turns."""
        self._send("WATCHDOG=1")

    def extend(self, seconds: float) -> None:
        """Stopping takes at least so much longer."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(seconds * 1e6)}")

    def _send(self, text: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
                sock.sendto(text.encode(), self._address)
        except OSError as error:
            log.debug("service manager could not be told", error=str(error))


def host_is_stopping() -> bool:
    """Whether systemd is taking the whole host down."""
    if not SYSTEMD.is_dir():
        return False
    try:
        done = subprocess.run(["systemctl", "is-system-running"], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.stdout.strip() == "stopping"


def _watchdog_us(environ: Mapping[str, str], pid: int) -> int:
    text = environ.get("WATCHDOG_USEC", "")
    meant = environ.get("WATCHDOG_PID", "")
    if not text.isdigit() or (meant and meant != str(pid)):
        return 0
    return int(text)

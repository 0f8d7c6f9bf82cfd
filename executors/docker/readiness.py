"""Whether a service answers (``docker-executor.md`` 6.4): connections to its ports, from here or from the helper."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from executors.errors import ExecutorError, PrepareError

if TYPE_CHECKING:
    from executors.docker.client import Engine

PORTS_MAX = 20
PORT_VARIABLE = "HEALTHCHECK_TCP_PORT"
DIAL_S = 1.0
FIRST_PAUSE_S = 0.02
PAUSE_S = 1.0
# What connects without sending anything, in the order of preference. Git, which every helper has, says hello.
_DIAL_SCRIPT = """
limit=; command -v timeout >/dev/null 2>&1 && limit="timeout 2"
if command -v bash >/dev/null 2>&1; then
  exec $limit bash -c 'exec 3<>"/dev/tcp/$1/$2"' - "$1" "$2"
elif nc -h 2>&1 | grep -q -e ' -z' -e '-[a-z0-9]*z'; then
  exec nc -z -w 2 "$1" "$2"
elif command -v nc >/dev/null 2>&1; then
  exec $limit nc -w 2 "$1" "$2" </dev/null
elif command -v python3 >/dev/null 2>&1; then
  exec python3 -I -c 'import socket,sys; socket.create_connection((sys.argv[1], int(sys.argv[2])), 2)' "$1" "$2"
fi
case "$1" in *:*) set -- "[$1]" "$2" ;; esac
said=$(git ls-remote "git://$1:$2/probe" 2>&1 & said=$!; sleep 1; kill "$said" 2>/dev/null)
case "$said" in *"unable to connect"*) exit 1 ;; esac
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a service may be reached. ``name`` is for texts; ``host_pid`` is its first process as the engine sees it."""

    container: str
    name: str
    addresses: tuple[str, ...]
    ports: tuple[int, ...]
    host_pid: int = 0


@dataclass(slots=True)
class ProbeLog:
    """What a probe did, each line with its time, for the report on a service that did not come up."""

    lines: list[str] = field(default_factory=list)

    def add(self, text: str) -> None:
        """A line."""
        now_ns = time.time_ns()
        moment = datetime.fromtimestamp(now_ns // 10**9, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S")
        self.lines.append(f"{moment}.{now_ns % 10**9:09}Z {text}")


def service_ports(config: Mapping[str, Any]) -> tuple[int, ...]:
    """The ports that say whether a container is up, from the ``Config`` that an inspection gives.

    Raises :class:`PrepareError` where its environment names a port that is none.
    """
    for entry in config.get("Env") or ():
        name, _, value = str(entry).partition("=")
        if name.upper() == PORT_VARIABLE:
            if not re.fullmatch(r"[0-9]{1,5}", value) or not 0 < int(value) < 65536:
                raise PrepareError(f"getting exposed ports: invalid health check tcp port: {value}")
            return (int(value),)
    exposed = (str(text).partition("/") for text in config.get("ExposedPorts") or ())
    ports = sorted(int(port) for port, _, protocol in exposed if protocol in ("", "tcp") and port.isdigit())
    return tuple(ports[:PORTS_MAX])


class Prober:
    """Connects to services: from this process where the engine's containers are this machine's, else from the helper.

    ``helper`` starts the helper container, if need be, and gives its id; without one there is only this process.
    """

    def __init__(self, engine: Engine, helper: Callable[[], Awaitable[str]] | None) -> None:
        self._engine = engine
        self._helper = helper

    async def wait(self, target: Target, log: ProbeLog) -> None:
        """Return when any port takes a connection; cancel it to give up."""
        log.add(f"waiting for TCP connection to {target.name} on [{' '.join(map(str, target.ports))}]...")
        is_near = self._engine.connection.socket_path is not None and is_local(target)
        pause_s = FIRST_PAUSE_S
        while True:
            for address in target.addresses:
                for port in target.ports:
                    log.add(f"dialing {target.name}:{port}...")
                    opened, is_near = await self._dial(address, port, is_near=is_near)
                    if opened:
                        return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S)

    async def _dial(self, address: str, port: int, *, is_near: bool) -> tuple[bool, bool]:
        """Whether a port takes a connection, and whether it still makes sense to dial from here."""
        if is_near:
            try:
                return await dial(address, port), True
            except (OSError, TimeoutError):
                is_near = self._helper is None
        return await self._dial_from_helper(address, port), is_near

    async def _dial_from_helper(self, address: str, port: int) -> bool:
        if self._helper is None:
            return False
        command = ["sh", "-c", _DIAL_SCRIPT, "probe", address, str(port)]
        try:
            helper = await self._helper()
            return await self._engine.call(lambda client: _run(client, helper, command)) == 0
        except ExecutorError:
            return False


def _run(client: Any, container: str, command: Sequence[str]) -> int:
    made = client.exec_create(container, list(command), stdin=False, workdir="/")
    client.exec_start(made["Id"])
    return int(client.exec_inspect(made["Id"])["ExitCode"])


async def dial(address: str, port: int) -> bool:
    """Whether a port takes a connection; False when it is closed. Raises :class:`OSError` where none can tell."""
    try:
        async with asyncio.timeout(DIAL_S):
            _, writer = await asyncio.open_connection(address, port)
    except ConnectionRefusedError:
        return False
    writer.transport.abort()
    return True


def is_local(target: Target, proc: Path = Path("/proc")) -> bool:
    """Whether a container's process is one of this machine's, in this one's user namespace.

    A remote engine, and one in a namespace of its own, may use addresses that mean something else here.
    """
    try:
        groups = (proc / str(target.host_pid) / "cgroup").read_text()
        users = (proc / str(target.host_pid) / "uid_map").read_text()
        return target.host_pid > 0 and target.container in groups and users == (proc / "self" / "uid_map").read_text()
    except OSError:
        return False


def addresses(settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The addresses of a container, from the ``NetworkSettings`` that an inspection gives."""
    networks: Iterable[Mapping[str, Any]] = (settings.get("Networks") or {}).values()
    found = [str(network.get(key) or "") for network in networks for key in ("IPAddress", "GlobalIPv6Address")]
    return tuple(dict.fromkeys(address for address in found if address))

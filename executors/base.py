"""The contract of an executor: one job's place to run, and what may go wrong there.

An executor knows scripts, processes and directories. It knows nothing of GitLab: payloads, traces and stages stay in
``runner``. Everything that a job starts must survive the death of the process that asked for it, and a second process
that builds an :class:`Environment` from the same :class:`JobSpec` must find what the first one left.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from executors.workspace import Workspace


class Stream(enum.IntEnum):
    """Which of its two streams a process wrote to. The values are those of the frames on disk."""

    STDOUT = 1
    STDERR = 2


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of output of a run: what one ``read`` brought.

    ``time_ns`` is the wall clock (Unix nanoseconds) at which the bytes were read, as recorded on disk: a second reader
    sees the same. ``next_offset`` continues :meth:`Environment.follow` behind this piece.
    """

    stream: Stream
    time_ns: int
    data: bytes
    next_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitStatus:
    """How a run ended: ``exit_code`` (0..255), or ``signal`` where the process itself was killed by one.

    ``dormant`` is the process id of a run that was given up some time after its SIGKILL.
    ``truncated`` tells that output beyond the disk bound was dropped. ``leftovers`` names processes that the run left
    behind, each as ``"<pid> <command>"``. ``held`` tells that something held its pipes after its end and was not waited
    for. ``remarks`` are what the executor has to say of the end, for the log.
    """

    exit_code: int | None = None
    signal: int | None = None
    dormant: int | None = None
    cpu_s: float = 0.0
    max_rss_bytes: int = 0
    truncated: bool = False
    held: bool = False
    leftovers: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What all processes of a job have used together; ``max_rss_bytes`` is the largest process, as ``time -v`` counts.

    With ``peak_of`` ``"container"`` it is the largest container, as its cgroup counts; None where nobody counted memory.
    """

    cpu_user_s: float
    cpu_system_s: float
    max_rss_bytes: int | None
    peak_of: str = "process"


@dataclass(frozen=True, slots=True, kw_only=True)
class Script:
    """A program for the job's shell.

    ``text`` is the whole script; ``stage`` is GitLab's name of the stage (``step_script``), for executors and logs.
    ``predefined`` asks for the helper's place instead of the user's image, where an executor has two. ``status`` is what
    ``CI_JOB_STATUS`` says in this stage, for programs that look at the job from outside.
    """

    text: bytes
    stage: str
    predefined: bool = False
    status: str = "running"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSpec:
    """A service beside the job. Only executors with containers look at it."""

    name: str
    aliases: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    pull_policies: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    executor_opts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSpec:
    """The image that the job asks for. Only executors with containers look at it."""

    name: str
    entrypoint: tuple[str, ...] = ()
    pull_policies: tuple[str, ...] = ()
    executor_opts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A directory of this host (``source``) that the job's processes see at ``target``, an absolute path, and nobody else.

    ``per_image`` asks for a directory of its own below ``source`` for every image. ``source`` itself is out of reach of jobs.
    ``for_tools`` tells that the runner's own programs see it, too, where they are not in the place of the job's.
    """

    source: str
    target: str
    read_only: bool = False
    per_image: bool = False
    for_tools: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Slot:
    """Which of a runner's places for jobs of one project the job has. ``store`` stands, as 32 hexadecimal digits, for
    runner, project and number together, and tells nothing of the runner's token."""

    short_token: str
    project_id: int
    number: int
    store: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryLogin:
    """A login for images that came with the job."""

    registry: str
    username: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """What executors with containers need beside the rest.

    ``expand`` replaces the job's variables in a text. ``variables`` is everything that the job's scripts see as
    ``KEY=VALUE``, in order, and ``service_variables`` what its services see. ``flags`` names the feature flags that are
    on. ``auth_config`` is the job's ``DOCKER_AUTH_CONFIG``; ``own_auth_config`` tells that it is the runner's own.
    ``keeps_builds`` tells that sources are fetched into what the last job of the slot left, ``protected`` that the job
    belongs to a protected ref. ``uses_tools`` tells that the runner has work of its own to do in the job's directories,
    ``shows_services`` that what services write is remarked while it comes.
    """

    slot: Slot
    expand: Callable[[str], str] = str
    variables: tuple[str, ...] = field(default=(), repr=False)
    service_variables: tuple[str, ...] = field(default=(), repr=False)
    flags: frozenset[str] = frozenset()
    logins: tuple[RegistryLogin, ...] = ()
    auth_config: str = field(default="", repr=False)
    own_auth_config: bool = False
    builds_dir: str = "/builds"
    keeps_builds: bool = False
    protected: bool = False
    uses_tools: bool = True
    shows_services: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """What an executor needs to know of a job; the same for the daemon that accepted it and for one that adopts it.

    ``record_dir`` is the job's directory of the state directory (0700, owned by the daemon); run directories and the
    supervisor's socket and lock live there. ``project_dir`` and ``tmp_dir`` are absolute paths of this host (shell) or
    of the container; the host owner's part of them is ``builds_root``, or all above where that is empty. ``shell`` is
    ``bash`` or ``sh``. ``user`` is the account of the job on this host, None for the daemon's own.
    ``output_limit_bytes`` bounds what one run may write to disk; past it output is dropped and ``truncated`` is set.
    ``deadline_unix_s`` is when a supervisor without a daemon must end the job by itself (job timeout plus a margin).
    ``orphan_grace_s`` is how long it goes on once no daemon is connected: None keeps it until the script ends.
    ``environment`` is added to what every process of the job gets from the executor. ``mounts`` are seen by its processes
    only; an executor that does not say :class:`SharesDirectories` gets none. ``table`` is the executor's own table of the
    runner entry, with values of the types that its keys have; None where there is none.
    """

    job_id: int
    record_dir: Path
    project_dir: str
    tmp_dir: str
    builds_root: str = ""
    shell: str = "bash"
    user: str | None = None
    output_limit_bytes: int = 256 * 1024 * 1024
    deadline_unix_s: float | None = None
    orphan_grace_s: float | None = None
    kill_leftovers: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[Mount, ...] = ()
    image: ImageSpec | None = None
    services: tuple[ServiceSpec, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    containers: ContainerSpec | None = None
    table: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PlaceFacts:
    """What is known of a place only once its driver was asked; empty where the configuration decides.

    ``driver`` is its name and version, ``hostname`` that of the place, ``is_shared`` tells whether the builds directory is
    shared between jobs, ``environment`` is added to all calls of the driver.
    """

    driver: str = ""
    hostname: str = ""
    builds_dir: str = ""
    cache_dir: str = ""
    is_shared: bool | None = None
    shell: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DriverInput:
    """What a driver may know of a job: its variables (of file variables the content), and the job as the server sent it."""

    variables: Mapping[str, str]
    response: bytes


OutputSink = Callable[[Output], None]


class Environment(Protocol):
    """One job's place to run.

    Order: ``prepare`` first, ``cleanup`` last; in between any number of runs, one at a time, and tools. All methods may
    be cancelled; ``cleanup`` is safe at any time, twice, and after a failed ``prepare``. A run is named by the caller,
    who records the name durably *before* ``start``: a name is started at most once, whatever dies in between.
    """

    files: Workspace

    async def prepare(self) -> None:
        """Create the place, or find what an earlier daemon created. Idempotent. Raises :class:`PrepareError`."""
        ...

    def remarks(self) -> Sequence[tuple[str, str]]:
        """Lines for the log that were not asked for yet, also after a failure of ``prepare`` or ``start``: each as its kind
        (``plain``, ``info``, ``warning``, ``error``, or ``output`` for text that goes into the log as it is) and text."""
        ...

    async def hostname(self) -> str:
        """Where the job's processes run, as its log says it. Raises :class:`ExecutorError` when they cannot."""
        ...

    async def login_environment(self) -> Mapping[str, str]:
        """What a login shell of the job's user has in its environment; the environment of tools starts from it."""
        ...

    async def start(self, run: str, script: Script) -> None:
        """Start a script under the name ``run`` (``1``, ``2``, …); returns once it runs or has been started before."""
        ...

    async def started(self, run: str) -> bool:
        """Whether ``run`` was ever started."""
        ...

    async def ended(self, run: str) -> bool:
        """Whether ``run`` has left its status."""
        ...

    def follow(self, run: str, offset: int = 0) -> AsyncIterator[Output]:
        """Output of a run from ``offset`` on, as it comes; ends with the script (and with whoever holds its pipes,
        for a bounded time)."""
        ...

    async def wait(self, run: str) -> ExitStatus:
        """The status of a run, waiting for its end. Raises :class:`EnvironmentLost` when there can be none."""
        ...

    async def stop(self, run: str, *, grace_s: float) -> None:
        """SIGTERM to everything the run started, after ``grace_s`` SIGKILL to what is left of it; returns when all is
        gone. A run that has ended is fine."""
        ...

    async def discard(self, run: str) -> None:
        """Further output of the run is not wanted: read it, do not store it."""
        ...

    async def tool(
        self,
        argv: Sequence[str],
        *,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        stdin: bytes = b"",
        output: OutputSink | None = None,
    ) -> ExitStatus:
        """Run a program of the runner's (git) as the job's user in the helper's place, and wait for it.

        ``env`` is added to the login environment. ``output`` gets both streams as they come; without it they are
        dropped. Cancelling kills the program and everything it started. Never a shell string.
        """
        ...

    async def kill_tools(self) -> None:
        """End what an earlier daemon left running of a stage that is about to be repeated, and wait for it."""
        ...

    async def detach(self) -> None:
        """Let go of the job without touching it: the scripts go on, another daemon takes over."""
        ...

    async def cleanup(self) -> None:
        """Remove what was made for the job (not its directories on a shared host). Logs problems, never raises."""
        ...


@runtime_checkable
class MeasuresUsage(Protocol):
    """An environment that knows what its job has used."""

    async def usage(self) -> Usage | None:
        """Up to now, since the job began, whatever died in between; None where that is lost. Raises :class:`ExecutorError`."""
        ...


@runtime_checkable
class KeepsCompany(Protocol):
    """An environment in which something runs beside the scripts, whose output is wanted in the log while it comes."""

    def company(self) -> tuple[str, str]:
        """Text that has come since the last time, whole lines as they go into the log, and a position: where it ends."""
        ...

    async def catch_up(self) -> None:
        """Have :meth:`company` give everything that was written up to now."""
        ...

    def resume_company(self, position: str) -> None:
        """Before ``prepare``: what is before this position was given by an earlier process."""
        ...


@runtime_checkable
class ScriptedPlace(Protocol):
    """An :class:`Environment` that takes scripts and nothing else: there are neither files nor tools.

    Behind ``prepare`` come ``configure`` and ``provision``, each once or, after ``tear_down``, once more. A second process
    that finds the place half made begins with ``configure`` again, which takes down what it finds.
    """

    def facts(self) -> PlaceFacts:
        """What the driver has said of the place that there is; nothing where there is none."""
        ...

    async def configure(self, job: DriverInput, output: OutputSink) -> PlaceFacts:
        """Ask the driver. Raises :class:`InvalidSpec`, :class:`PrepareError`, :class:`ReportedFailure`."""
        ...

    async def provision(self, job: DriverInput, output: OutputSink) -> None:
        """Have the driver make the place. Raises the same."""
        ...

    async def tear_down(self) -> str:
        """Have the driver take the place down, if there is one; what went wrong, for the log."""
        ...


class Executor(Protocol):
    """Everything that the jobs of one kind share: opened once per daemon, hands out environments."""

    async def open(self) -> None:
        """Acquire what is shared (a warm parent process, a client). Raises :class:`PrepareError`."""
        ...

    def environment(self, spec: JobSpec) -> Environment:
        """The place of one job; nothing happens before its ``prepare``."""
        ...

    def expect(self, record_dir: Path) -> None:
        """The job of this record is about to be run here: what can be made ready without knowing more may begin. Its
        environment is cleaned up, or detached, in any case."""
        ...

    def sweep(self, tables: Sequence[Mapping[str, Any]], kept: Callable[[], Collection[str]]) -> None:
        """Begin to remove what earlier daemons made for jobs that are gone. ``tables`` are the executor's tables of all
        runner entries, ``kept`` gives the names of the records that there are."""
        ...

    async def close(self) -> None:
        """Give back what is shared; jobs that run go on."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How directories of this host come to jobs.

    With ``problem`` empty they can be mounted for one job alone, so that others know of them what they are told. Otherwise
    ``problem`` says why not, and a job can be given paths of this host at most. ``uid`` and ``gid`` are whose processes the
    jobs' are; None: those of an image, anybody's, and then images are what ``per_image`` is about. ``is_tight`` False: jobs
    can write to what they are shown for reading.
    """

    problem: str = ""
    uid: int | None = None
    gid: int | None = None
    is_tight: bool = True


@runtime_checkable
class SharesDirectories(Protocol):
    """An executor whose jobs can be given directories of this host."""

    async def sharing(self, user: str | None, table: Mapping[str, Any]) -> Sharing:
        """How, for jobs of this account (None: the daemon's own) and of a runner with this table of the executor's.

        Raises :class:`ExecutorError` where they can be given none.
        """
        ...

"""A job on disk: what is true about it from the moment its 201 is read until the coordinator has taken its end.

``state_dir/jobs/<short token>-<job id>/`` (0700) holds ``payload.json`` (the body as it came), ``accepted.json`` (who
accepted it and how), ``secrets.json`` (values that were resolved for the job), ``journal.jsonl`` (one fact a line, written
before it is acted on), ``trace`` (the log as the coordinator must see it) and ``run-<n>/`` of the executor. "Written" means
``write(2)``: it survives the process.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import msgspec
import structlog

from executors.file_operations import write_private
from runner.coordinator.payload import JobPayload, decode
from runner.errors import RecordInvalid, RunnerError
from runner.job.outcome import Outcome
from runner.trace.log import LogState

log = structlog.get_logger()

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
# Adoption that breaks this often sets a record aside: one bad record must not stop the daemon.
SETTLED = "adoption settled"
SET_ASIDE = "set-aside"
KEPT = "kept"
REPORT = "report.json"
# What of a record may stay: nothing that holds a token or a variable.
KEPT_FILES = ("trace", REPORT)
REMOVED = ".removed-"
MAX_ADOPTIONS_WITHOUT_PROGRESS = 2
MAX_SET_ASIDE = 50
SECRETS_FILE = "secrets.json"


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """Who accepted the job, and what of that moment the job depends on.

    ``runner`` is the configuration entry as JSON. Times are Unix nanoseconds. ``boot_id`` tells whether the host was
    started anew since. ``builds_root`` and ``working_dir`` are absolute.
    """

    job_id: int
    runner: msgspec.Raw
    system_id: str
    accepted_at_ns: int
    concurrent_id: int
    project_slot: int
    correlation_id: str
    boot_id: str
    working_dir: str
    job_user: str | None = None
    ca_chain: str = ""
    client_cert: str = ""
    client_key: str = ""


class Acknowledged(msgspec.Struct, frozen=True, kw_only=True, tag_field="fact", tag="acknowledged"):
    """The coordinator has heard that the job runs."""

    at_ns: int


class StepStarted(msgspec.Struct, frozen=True, kw_only=True, tag_field="fact", tag="step_started"):
    """A step of the job's path begins; ``log`` is the state of the log before its first byte.

    ``run`` names the script of the step, where it has one: it is due from now on. ``within`` is the step that this one is
    a part of, and that is taken again as a whole.
    """

    step: str
    at_ns: int
    log: LogState
    run: str = ""
    within: str = ""


class StepEnded(msgspec.Struct, frozen=True, kw_only=True, tag_field="fact", tag="step_ended"):
    """A step is over; ``failure`` tells how, when it did not succeed; ``log`` is the state behind its last byte;
    ``counts`` is what :class:`runner.job.costs.Tally` counted in it."""

    step: str
    at_ns: int
    log: LogState
    failure: Outcome | None = None
    counts: dict[str, int] = {}


class Note(msgspec.Struct, frozen=True, kw_only=True, tag_field="fact", tag="note"):
    """A fact that a step found out and later ones need, by name."""

    name: str
    value: str


class ScopeStopped(msgspec.Struct, frozen=True, kw_only=True, tag_field="fact", tag="stopped"):
    """The job or its script was stopped from outside."""

    scope: str
    reason: str
    signal: str = ""


class PatchSent(msgspec.Struct, frozen=True, kw_only=True, tag_field="fact", tag="patch"):
    """The log up to ``end`` is about to be sent: nothing before it may change any more."""

    end: int


class Decided(msgspec.Struct, frozen=True, kw_only=True, tag_field="fact", tag="outcome"):
    """The result of the job. ``quiet``: nothing is to be reported (the coordinator did not want the job); ``as_is``: the
    reason goes out unmapped."""

    outcome: Outcome
    quiet: bool = False
    as_is: bool = False


class ResolvedSecret(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a secret, and whether scripts find it in a file."""

    name: str
    value: str
    file: bool


class Adopted(msgspec.Struct, frozen=True, kw_only=True, tag_field="fact", tag="adopted"):
    """Another daemon took the job over."""

    at_ns: int
    pid: int


Fact = Acknowledged | StepStarted | StepEnded | Note | ScopeStopped | PatchSent | Decided | Adopted

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Fact] = msgspec.json.Decoder(Fact)


class Journal:
    """The facts of a job in their order. A torn last line (the process died while writing it) is cut off.

    Of :class:`PatchSent` only the furthest is kept in memory, as ``highest_sent``: a long job sends thousands.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._end = 0
        self._is_broken = False
        self.facts: list[Fact] = []
        self.on_broken: Callable[[str], None] | None = None
        self.highest_sent = 0
        try:
            for fact in self._load():
                self._keep(fact)
        except BaseException:
            self.close()
            raise

    def _load(self) -> Iterator[Fact]:
        content = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        whole, newline, _ = content.rpartition(b"\n")
        self._end = len(whole) + len(newline)
        os.ftruncate(self._fd, self._end)
        for number, line in enumerate(whole.split(b"\n") if whole else (), start=1):
            try:
                yield _decoder.decode(line)
            except msgspec.DecodeError as error:
                raise RecordInvalid(f"journal line {number}: {error}") from error

    def _keep(self, fact: Fact) -> None:
        if isinstance(fact, PatchSent):
            self.highest_sent = max(self.highest_sent, fact.end)
        else:
            self.facts.append(fact)

    def append(self, fact: Fact) -> None:
        """Write a fact down; it holds from here on, whatever happens to this process.

        Where the disk does not take it, ``on_broken`` hears of that once. The job goes on with facts in memory: it is worth
        more than its chance to be adopted.
        """
        self._keep(fact)
        line = _encoder.encode(fact) + b"\n"
        try:
            written = os.pwrite(self._fd, line, self._end)
            if written < len(line):
                os.pwrite(self._fd, line[written:], self._end + written)
        except OSError as error:
            os.ftruncate(self._fd, self._end)
            self._break(f"the record of the job cannot be written: {error.strerror}")
        else:
            self._end += len(line)

    def _break(self, text: str) -> None:
        if not self._is_broken and self.on_broken is not None:
            self._is_broken = True
            self.on_broken(text)

    def close(self) -> None:
        """Close the file; the facts stay readable."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class JobRecord:
    """One job's directory, open for the process that owns the job."""

    def __init__(self, directory: Path, accepted: Accepted, raw_payload: bytes) -> None:
        self.directory = directory
        self.accepted = accepted
        self.raw_payload = raw_payload
        self.journal = Journal(directory / "journal.jsonl")
        self.adopted = bool(self.journal.facts)

    @property
    def payload(self) -> JobPayload:
        """The typed payload. Raises :class:`PayloadInvalid`."""
        return decode(self.raw_payload)

    @property
    def secrets(self) -> tuple[ResolvedSecret, ...]:
        """The secrets of the job, once they are resolved. Raises :class:`RecordInvalid`."""
        try:
            return msgspec.json.decode(self._secrets_path.read_bytes(), type=tuple[ResolvedSecret, ...])
        except FileNotFoundError:
            return ()
        except (OSError, msgspec.DecodeError) as error:
            raise RecordInvalid(f"{self._secrets_path.name}: {error}") from error

    def keep_secrets(self, secrets: Sequence[ResolvedSecret]) -> None:
        """Keep what was resolved: who adopts the job masks the same values, and asks nobody again."""
        incoming = f"{self._secrets_path}.incoming"
        write_private(incoming, msgspec.json.encode(secrets))
        os.replace(incoming, self._secrets_path)  # noqa: PTH105 - whole or not at all

    @property
    def _secrets_path(self) -> Path:
        return self.directory / SECRETS_FILE

    @property
    def trace_path(self) -> Path:
        """The spool of the log."""
        return self.directory / "trace"

    @property
    def outcome(self) -> Decided | None:
        """The result, once there is one."""
        return next((fact for fact in reversed(self.journal.facts) if isinstance(fact, Decided)), None)

    @property
    def highest_sent(self) -> int:
        """No byte of the log before this offset may change."""
        return self.journal.highest_sent

    def adoptions_without_progress(self) -> int:
        """How often a daemon took this record over since it last got anywhere."""
        count = 0
        for fact in reversed(self.journal.facts):
            if isinstance(fact, StepEnded | Decided) or (isinstance(fact, Note) and fact.name == SETTLED):
                break
            count += isinstance(fact, Adopted)
        return count

    def close(self) -> None:
        """Let go of the record; it stays on disk."""
        self.journal.close()

    def remove(self, *, keeps_log: bool = False) -> None:
        """The coordinator has taken the end: forget the job. Never half of it: a record without its journal would be
        taken for a job that has not begun. With ``keeps_log`` the masked log and the report stay in :data:`KEPT`."""
        self.journal.close()
        _remove(self.directory, keep=_new_kept(self.directory) if keeps_log else None)


class RecordStore:
    """The records of one state directory, owned by one process at a time."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._jobs = state_dir / "jobs"
        self._aside = state_dir / SET_ASIDE
        self._lock_fd = -1

    @property
    def lock_fd(self) -> int:
        """The descriptor that holds the lock, to be passed on when this process re-executes itself."""
        return self._lock_fd

    def open(self, *, inherited_lock_fd: int | None = None) -> None:
        """Take the directory. Raises :class:`RunnerError` when another daemon has it or it cannot be written."""
        try:
            for directory in (self._state_dir, self._jobs):
                directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._check_owners()
            self._jobs.chmod(0o700)
            if inherited_lock_fd is not None:
                self._lock_fd = inherited_lock_fd
                os.set_inheritable(inherited_lock_fd, False)
                return
            self._lock_fd = os.open(self._state_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunnerError(
                f"another daemon uses the state directory {self._state_dir}: stop it, or give this one a state_dir of "
                "its own in [pyrunner]"
            ) from error
        except OSError as error:
            raise RunnerError(f"cannot use the state directory {self._state_dir}: {error.strerror}") from error
        self._write_lock_owner()
        self._sweep()

    def _check_owners(self) -> None:
        """Records of somebody else are not adopted: they say what this daemon runs, and as whom."""
        about = self._jobs.lstat()
        if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid():
            raise RunnerError(f"{self._jobs} is not a directory of this daemon's account: remove it, or change its owner")
        about = self._state_dir.stat()
        if about.st_uid not in (0, os.geteuid()) or (about.st_mode & stat.S_IWOTH and not about.st_mode & stat.S_ISVTX):
            log.warning("the state directory can be changed by others, and with it the jobs", path=str(self._state_dir))

    def _write_lock_owner(self) -> None:
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Let another daemon have the directory."""
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    def receive(self, raw: bytes, runner: bytes) -> Path:
        """Put the body of a 201 on disk, with the runner entry that got it, before anything looks into it."""
        directory = self._jobs / f".incoming-{secrets.token_hex(8)}"
        directory.mkdir(mode=0o700)
        try:
            write_private(f"{directory}/payload.json", raw)
            write_private(f"{directory}/runner.json", runner)
        except OSError:
            _remove(directory)
            raise
        return directory

    def accept(self, incoming: Path, short_token: str, accepted: Accepted, raw: bytes) -> JobRecord:
        """Make a record of a received body. A record of the same job that is there already is set aside."""
        directory = self._jobs / f"{_file_name(short_token)}-{accepted.job_id}"
        write_private(f"{incoming}/accepted.json", msgspec.json.encode(accepted))
        if directory.exists():
            self.set_aside(directory)
        incoming.rename(directory)
        return JobRecord(directory, accepted, raw)

    def load(self, directory: Path) -> JobRecord:
        """Open a record of an earlier daemon. Raises :class:`RecordInvalid`."""
        try:
            raw = (directory / "payload.json").read_bytes()
            accepted = msgspec.json.decode((directory / "accepted.json").read_bytes(), type=Accepted)
        except (OSError, msgspec.DecodeError) as error:
            raise RecordInvalid(f"{directory.name}: {error}") from error
        return JobRecord(directory, accepted, raw)

    def directories(self) -> list[Path]:
        """Records on disk, oldest first."""
        found = [entry for entry in self._jobs.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
        return sorted(found, key=lambda entry: entry.stat().st_mtime)

    def unfinished(self) -> list[Path]:
        """Bodies that were received, but not accepted before the process died."""
        return [entry for entry in self._jobs.iterdir() if entry.name.startswith(".incoming-")]

    def _sweep(self) -> None:
        """Finish what a process was removing when it died."""
        for entry in self._jobs.iterdir():
            if entry.name.startswith(REMOVED):
                shutil.rmtree(entry, ignore_errors=True)

    def set_aside(self, directory: Path) -> Path:
        """Move a record out of the way, without the token of its job."""
        self._aside.mkdir(mode=0o700, exist_ok=True)
        target = self._aside / f"{directory.name}-{secrets.token_hex(4)}"
        directory.rename(target)
        for name in ("payload.json", "accepted.json", "runner.json", SECRETS_FILE):
            (target / name).unlink(missing_ok=True)
        for entry in (*target.glob("run-*"), *target.glob("tool-*")):
            shutil.rmtree(entry, ignore_errors=True)
        for old in sorted(self._aside.iterdir(), key=lambda entry: entry.stat().st_ctime)[:-MAX_SET_ASIDE]:
            shutil.rmtree(old, ignore_errors=True)
        return target


def _new_kept(record: Path) -> Path:
    """A name for what is kept of a record."""
    return record.parents[1] / KEPT / f"{record.name}-{secrets.token_hex(4)}"


def _remove(directory: Path, *, keep: Path | None = None) -> None:
    """Take a record away at once, then its files one by one; those that stay are moved to ``keep`` in between."""
    gone = directory.with_name(f"{REMOVED}{secrets.token_hex(8)}")
    with contextlib.suppress(FileNotFoundError):
        directory.rename(gone)
        if keep is not None:
            _keep(gone, keep)
    shutil.rmtree(gone, ignore_errors=True)


def _keep(record: Path, keep: Path) -> None:
    try:
        keep.mkdir(mode=0o700, parents=True, exist_ok=True)
        for name in KEPT_FILES:
            with contextlib.suppress(FileNotFoundError):
                (record / name).rename(keep / name)
    except OSError as error:
        log.warning("log and report of a job could not be kept", error=error.strerror)


def boot_id() -> str:
    """What tells one start of this host from the next; empty where the system does not say."""
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return ""


def _file_name(text: str) -> str:
    return "".join(char if char.isalnum() or char in "-_." else "_" for char in text).lstrip(".") or "_"

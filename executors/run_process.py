"""A script or a tool of a job as a process: its pipes, its files, and the child's way into the program. Standard library only."""

from __future__ import annotations

import errno
import fcntl
import os
import signal

from executors.usage import Spent

# Type names only: importing ``typing`` would cost a third of the memory of a supervisor.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, NoReturn

    from executors.namespaces import View

    Message = dict[str, Any]

PIPE_BYTES = 1024 * 1024
NEW_STATUS = "status.new"
STATUS_BYTES = 4096
RESET_SIGNALS = tuple(signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})


class Run:
    """A script or a tool: its shell, its two pipes, its files.

    One ``is_group``: only its process group is the runner's to end; what leaves the group is somebody's on purpose.
    """

    def __init__(self, name: str, request: Message, pid: int, output_fd: int) -> None:
        self.name = name
        self.pid = pid
        self.output_fd = output_fd
        self.pipes: dict[int, int] = {}
        self.room = request.get("limit", 1 << 62)
        self.kill_leftovers = request.get("kill_leftovers", False)
        self.is_tool = request.get("tool", False)
        self.is_group = request.get("group", False)
        self.truncated = False
        self.discarding = False
        self.stopping = False
        self.is_dormant = False
        self.exit: int | None = None
        self.spent = Spent()
        self.give_up_at = 0.0
        self.settled_at: float | None = None


def make_pipe(user: Message | None, opened: list[int]) -> tuple[int, int]:
    """A large pipe that the job's user may open again through /proc; its ends are added to ``opened``."""
    read_fd, write_fd = os.pipe()
    opened += (read_fd, write_fd)
    try:
        fcntl.fcntl(write_fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    except OSError:
        pass  # over the user's pipe quota: the default size does
    if user is not None:
        os.fchown(write_fd, user["uid"], user["gid"])
    return read_fd, write_fd


def launch(request: Message, stdin_fd: int, pipes: list[tuple[int, int]], *, view: View | None, user: Message | None) -> int:
    """Start the program of a run; its process id. What goes wrong is said on its standard error."""
    if view is None and user is None:
        pid = spawn(request, stdin_fd, pipes)
        if pid is not None:
            return pid
    pid = os.fork()
    if pid == 0:
        become(request, stdin_fd, pipes, view=view, user=user)
    return pid


def spawn(request: Message, stdin_fd: int, pipes: list[tuple[int, int]]) -> int | None:
    """The short way to a process that nothing else has to be arranged for: half the time of a fork, which copies what this
    process has in memory. None where it does not get there: a child says why."""
    program = next((path for path in candidates(request["argv"][0], request["env"]) if os.access(path, os.X_OK)), None)
    if program is None:
        return None
    wires = [(os.POSIX_SPAWN_DUP2, source, number) for number, source in enumerate((stdin_fd, pipes[0][1], pipes[1][1]))]
    try:
        os.chdir(request["cwd"])
        return os.posix_spawn(
            program,
            request["argv"],
            request["env"],
            file_actions=wires,
            setsid=True,
            setsigmask=(),
            setsigdef=RESET_SIGNALS,
        )
    except (OSError, NotImplementedError):
        return None
    finally:
        os.chdir("/")


def become(request: Message, stdin_fd: int, pipes: list[tuple[int, int]], *, view: View | None, user: Message | None) -> NoReturn:
    """The child's way into the program; never returns."""
    try:
        os.setsid()
        os.dup2(stdin_fd, 0)
        os.dup2(pipes[0][1], 1)
        os.dup2(pipes[1][1], 2)
        for number in RESET_SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        if view is not None:
            view.enter()
        drop_privileges(user)
        os.chdir(request["cwd"])
        execute(request["argv"], request["env"])
    except OSError as error:
        os.write(2, f"{request['argv'][0]}: {error.strerror}\n".encode())
        os._exit(126 if error.errno == errno.EACCES else 127)
    except BaseException as error:
        os.write(2, f"{error}\n".encode())
    os._exit(127)


def drop_privileges(user: Message | None) -> None:
    """Become the job's user, for good."""
    if user is not None:
        os.setgroups(user["groups"])
        os.setresgid(user["gid"], user["gid"], user["gid"])
        os.setresuid(user["uid"], user["uid"], user["uid"])


def reserve(run_fd: int) -> bool:
    """Claim a run, with room for its status: a disk that fills up must not cost the result. False when it was claimed."""
    try:
        os.close(os.open("started", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=run_fd))
    except FileExistsError:
        return False
    fd = os.open(NEW_STATUS, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=run_fd)
    try:
        os.posix_fallocate(fd, 0, STATUS_BYTES)
    finally:
        os.close(fd)
    return True


def execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Become a program that is looked up in the PATH of ``env``.

    ``os.execvpe`` would import a module, which the job's user may not be able to read.
    """
    problem = OSError(errno.ENOENT, "not found")
    for path in candidates(argv[0], env):
        try:
            os.execve(path, argv, env)
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR):
                problem = error
    raise problem


def candidates(name: str, env: dict[str, str]) -> list[str]:
    """Where a program may be."""
    if "/" in name:
        return [name]
    return [f"{place}/{name}" for place in env.get("PATH", "/usr/bin:/bin").split(":")]

"""The process that owns the scripts of one job on this host. Standard library only.

It lives in a session of its own, holds ``supervisor.lock`` of the job's record for life, and serves ``control.sock`` there
with one JSON object a line. It is the subreaper of everything that the job starts. What a run prints goes to
``<run>/output`` as frames, how it ended to ``<run>/status``, whether a daemon is there or not.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import time

from executors.daemon_link import DaemonLink
from executors.file_channel import serve_channel
from executors.file_operations import Roots, operate, write_all
from executors.frames import FRAME
from executors.namespaces import View, make_view
from executors.processes import descendants, kill_below, process_name, signal_all, signal_group
from executors.run_process import NEW_STATUS, Run, drop_privileges, launch, make_pipe, reserve
from executors.usage import load, save

# Type names only: importing ``typing`` would cost a third of the memory of a supervisor.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]

READ_BYTES = 256 * 1024
# How long the output of a script is waited for once its shell has ended, while something still holds the pipes.
HELD_PIPES_S = 5.0
POLL_WHILE_STOPPING_S = 0.02
# Processes that outlive their shell by less are not left behind.
SETTLE_S = 0.05
# What scripts get between SIGTERM and SIGKILL when no daemon says otherwise.
ORPHAN_KILL_S = 10.0
# How long a process group that was sent SIGKILL is waited for, with whatever holds its output, when nobody says otherwise.
FORCE_KILL_S = 10.0
# How long the rest of a process group is waited for once SIGKILL was sent to it: a dead process that nobody collects
# counts as alive.
GROUP_GONE_S = 2.0
LEFTOVER_NAMES = 20


class Stop:
    """A kill under way: SIGTERM was sent, SIGKILL follows at ``deadline``; ``reply`` is answered when all is gone.

    ``only``: these processes instead of everything of the job; ``is_group``: with the process groups that they lead. Such a
    group is given up so many seconds after its SIGKILL.
    """

    def __init__(
        self, reply: int | None, deadline: float, only: list[int] | None, *, is_group: bool = False, force: float = 0.0
    ) -> None:
        self.reply = reply
        self.deadline = deadline
        self.only = only
        self.is_group = is_group
        self.give_up_at = deadline + force


class Supervisor:
    """One job's scripts. Single-threaded: one epoll loop. It may be there before anybody knows more of the job than its
    record; ``begin`` tells the rest."""

    def __init__(self, dir_fd: int, lock_fd: int, listener: socket.socket) -> None:
        self.dir_fd = dir_fd
        self.lock_fd = lock_fd
        self.has_begun = False
        self.user: Message | None = None
        self.mounts: list[Message] = []
        self.view: View | None = None
        self.roots = Roots([], "")
        self.deadline: float | None = None
        self.orphan_grace: float | None = None
        self.closing = False
        self.expired = False
        self.runs: dict[str, Run] = {}
        self.readers: dict[int, tuple[Run, int]] = {}
        self.file_jobs: dict[int, tuple[int | None, list[bytes]]] = {}
        self.stops: list[Stop] = []
        self.known_leftovers: set[int] = set()
        self.own_children: set[int] = set()
        self.spent = load(dir_fd)
        self.wake_read = -1
        self.epoll = select.epoll()
        self.link = DaemonLink(listener, self.epoll, self.forget_requests)

    def run(self) -> None:
        """Serve until nothing is left to do."""
        wake_read, wake_write = os.pipe()
        for fd in (wake_read, wake_write):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self.wake_read = wake_read
        self.link.open()
        self.epoll.register(wake_read, select.EPOLLIN)
        while not self.is_done():
            for fd, events in self.epoll.poll(self.timeout()):
                self.handle(fd, events)
            self.collect()
            self.finish_runs()
            self.advance_stops()
            self.enforce_limits()
        if not self.closing:
            save(self.spent, self.dir_fd)

    def is_done(self) -> bool:
        """Whether this process may end."""
        if self.runs or self.stops or self.file_jobs:
            return False
        return self.closing or self.link.is_abandoned

    def timeout(self) -> float:
        """How long to sleep, seconds."""
        if self.stops or any(run.exit is not None for run in self.runs.values()):
            return POLL_WHILE_STOPPING_S
        return 5.0 if self.link.is_connected else 1.0

    def handle(self, fd: int, events: int) -> None:
        """React to what epoll saw."""
        if fd in self.readers:
            self.read_output(*self.readers[fd], fd)
        elif fd in self.file_jobs:
            self.read_files_answer(fd)
        elif fd == self.wake_read:
            try:
                os.read(fd, 4096)
            except BlockingIOError:
                pass
        else:
            for request in self.link.handle(fd, events):
                self.obey(request)

    # The daemon's requests

    def forget_requests(self) -> None:
        """The next daemon counts its requests anew: what this one asked is answered to nobody."""
        self.file_jobs = {fd: (None, parts) for fd, (_, parts) in self.file_jobs.items()}
        for stop in self.stops:
            stop.reply = None

    def answer(self, number: int | None, message: Message) -> None:
        """Answer a request of the daemon that is connected now."""
        if number is not None:
            self.link.send({"id": number, **message})

    def begin(self, request: Message) -> bool:
        """Learn whose job it is and where it works, once; whether that was new."""
        if self.has_begun:
            return False
        self.has_begun = True
        self.user, self.mounts = request["user"], request["mounts"]
        self.roots = Roots(request["roots"], request["base"])
        self.deadline, self.orphan_grace = request["deadline"], request["orphan_grace"]
        return True

    def obey(self, request: Message) -> None:
        """Carry out one command."""
        command = request["command"]
        try:
            if command == "begin":
                self.link.send({"id": request["id"], "new": self.begin(request), "runs": list(self.runs)})
            elif not self.has_begun and command != "close":
                self.link.send({"id": request["id"], "error": "the job has not begun"})
            elif command == "start":
                self.link.send({"id": request["id"], "started": self.start(request)})
            elif command == "stop" and request.get("group"):
                self.stop_groups([request["run"]], request["grace"], request["id"], request.get("force", FORCE_KILL_S))
            elif command == "stop":
                self.begin_stop(request["grace"], request["id"])
            elif command == "kill_tools":
                self.kill_tools(request["id"])
            elif command == "discard":
                if request["run"] in self.runs:
                    self.runs[request["run"]].discarding = True
                self.link.send({"id": request["id"]})
            elif command == "files":
                self.start_files(request)
            elif command == "open_channel":
                self.open_channel(request)
            elif command == "usage":
                found = self.spent.with_living(descendants(os.getpid()))
                self.link.send({"id": request["id"], **found.as_message()})
            elif command == "close":
                self.closing = True
                save(self.spent, self.dir_fd)  # after the answer the record may be removed
                self.link.send({"id": request["id"]})
            else:
                self.link.send({"id": request["id"], "error": f"unknown command {command}"})
        except OSError as error:
            self.link.send({"id": request["id"], "error": f"{command}: {error}"})

    # Runs

    def start(self, request: Message) -> bool:
        """Start a run, once and for all: False when it was started before."""
        name = request["run"]
        self.open_view()
        run_fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.dir_fd)
        opened = []
        try:
            if not reserve(run_fd):
                return False
            output_fd = os.open("output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600, dir_fd=run_fd)
            opened.append(output_fd)
            stdin_fd = os.open(request["stdin"], os.O_RDONLY, dir_fd=run_fd)
            opened.append(stdin_fd)
            pipes = [make_pipe(self.user, opened), make_pipe(self.user, opened)]
            pid = launch(request, stdin_fd, pipes, view=self.view, user=self.user)
        except BaseException:
            for fd in opened:
                os.close(fd)
            raise
        finally:
            os.close(run_fd)
        os.close(stdin_fd)
        run = Run(name, request, pid, output_fd)
        for stream, (read_fd, write_fd) in enumerate(pipes, start=1):
            os.close(write_fd)
            os.set_blocking(read_fd, False)
            run.pipes[read_fd] = stream
            self.readers[read_fd] = (run, stream)
            self.epoll.register(read_fd, select.EPOLLIN)
        self.runs[name] = run
        return True

    def open_view(self) -> None:
        """What the job alone sees is there before the first of its processes."""
        if self.mounts and self.view is None:
            self.view = make_view(self.mounts)

    def read_output(self, run: Run, stream: int, fd: int) -> None:
        """Move what a pipe holds into the run's file, as one frame."""
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close_pipe(run, fd)
            return
        if run.discarding:
            return
        kept = data[: max(run.room, 0)]
        if len(kept) < len(data):
            run.truncated = True
        if not kept:
            return
        run.room -= len(kept)
        try:
            write_all(run.output_fd, FRAME.pack(stream, time.time_ns(), len(kept)) + kept)
        except OSError:
            # A full disk must not end the job; what is written so far stays readable up to its last whole frame.
            run.truncated = run.discarding = True
            return
        self.link.send({"event": "output", "run": run.name})

    def close_pipe(self, run: Run, fd: int) -> None:
        """One stream of a run is over."""
        self.epoll.unregister(fd)
        os.close(fd)
        del self.readers[fd]
        del run.pipes[fd]

    def collect(self) -> None:
        """Take the status of every child that has ended."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if not pid:
                return
            if pid in self.own_children:
                self.own_children.discard(pid)
                continue
            self.spent.add(usage)
            for run in self.runs.values():
                if run.pid == pid:
                    run.exit = status
                    run.give_up_at = max(run.give_up_at, time.monotonic() + HELD_PIPES_S)
                if run.pid == pid or not (run.is_tool or self.is_run(pid)):
                    run.spent.add(usage)

    def is_run(self, pid: int) -> bool:
        """Whether a child is the shell of a run; others come from what runs have left behind."""
        return any(run.pid == pid for run in self.runs.values())

    def finish_runs(self) -> None:
        """Write the status of runs whose shell has ended and whose output is read."""
        for run in [run for run in self.runs.values() if run.exit is not None]:
            held = bool(run.pipes)
            if held and time.monotonic() < run.give_up_at:
                continue
            for fd in list(run.pipes):
                self.close_pipe(run, fd)
            living = [] if run.is_tool or run.is_group else descendants(os.getpid())
            if living and self.is_settling(run):
                continue
            self.end_run(run, held, living)

    def end_run(self, run: Run, held: bool, living: list[int]) -> None:
        """Leave the result of a run behind, and tell whoever waits; with what all has cost, where nothing lives on."""
        if not run.is_tool:
            save(self.spent, self.dir_fd)
        self.write_status(run, held, living)
        os.close(run.output_fd)
        del self.runs[run.name]
        is_all = not (run.is_tool or run.is_group or living or self.runs)
        self.link.send({"event": "exit", "run": run.name, "usage": self.spent.as_message() if is_all else None})

    def is_settling(self, run: Run) -> bool:
        """Whether what is left may be about to end with its shell: it gets a moment."""
        now = time.monotonic()
        if run.settled_at is None:
            run.settled_at = now + SETTLE_S
        return now < run.settled_at

    def write_status(self, run: Run, held: bool, living: list[int]) -> None:
        """Leave the result behind, by rename: it is there whole or not at all."""
        status = run.exit
        leftovers = [] if run.stopping or run.is_tool or run.is_group else self.leftovers(run, living)
        result = {
            "exit_code": os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None,
            "dormant": run.pid if run.is_dormant else None,
            "cpu_s": run.spent.user_s + run.spent.system_s,
            "max_rss_bytes": run.spent.max_rss_bytes,
            "truncated": run.truncated,
            "held": held,
            "leftovers": leftovers,
        }
        content = json.dumps(result).encode()
        try:
            run_fd = os.open(run.name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=self.dir_fd)
        except OSError:
            return  # a tool that nobody waits for any more, its directory went with the one who did
        try:
            fd = os.open(NEW_STATUS, os.O_WRONLY | os.O_CREAT, 0o600, dir_fd=run_fd)
            write_all(fd, content)
            os.ftruncate(fd, len(content))
            os.close(fd)
            os.rename(NEW_STATUS, "status", src_dir_fd=run_fd, dst_dir_fd=run_fd)
        except OSError:
            pass  # no room for a status: whoever asks finds the run lost
        finally:
            os.close(run_fd)

    def leftovers(self, run: Run, living: list[int]) -> list[str]:
        """Name the processes that a run left behind, and end them where that is wanted."""
        found = [pid for pid in living if pid not in self.known_leftovers]
        if run.kill_leftovers:
            kill_below(os.getpid())
            return []
        names = [f"{pid} {name}" for pid in found if (name := process_name(pid)) is not None]
        self.known_leftovers.update(found)
        return names[:LEFTOVER_NAMES]

    # Stopping

    def begin_stop(self, grace: float, reply: int | None) -> None:
        """SIGTERM to everything of the job; the rest happens in :meth:`advance_stops`."""
        for run in self.runs.values():
            run.stopping = True
        signal_all(descendants(os.getpid()), signal.SIGTERM)
        self.stops.append(Stop(reply, time.monotonic() + grace, None))

    def stop_groups(self, names: list[str], grace: float, reply: int | None, force: float = FORCE_KILL_S) -> None:
        """SIGTERM to the process groups of these runs alone."""
        found = [run for run in self.runs.values() if run.name in names]
        for run in found:
            run.stopping = True
            signal_group(run.pid, signal.SIGTERM)
        pids = [run.pid for run in found]
        self.stops.append(Stop(reply, time.monotonic() + grace, pids, is_group=True, force=force))

    def kill_tools(self, reply: int) -> None:
        """End the tools that an earlier daemon left running."""
        tools = [run.pid for run in self.runs.values() if run.is_tool]
        for pid in tools:
            kill_below(pid, also=(pid,))
        self.stops.append(Stop(reply, time.monotonic(), tools))

    def advance_stops(self) -> None:
        """Kill what does not end in time; answer once nothing is left."""
        for stop in list(self.stops):
            if stop.only is not None:
                left = [pid for pid in stop.only if any(run.pid == pid for run in self.runs.values())]
                if stop.is_group and time.monotonic() < stop.deadline + GROUP_GONE_S:
                    left += [pid for pid in stop.only if pid not in left and signal_group(pid, 0)]
            else:
                left = descendants(os.getpid())
            if not left and not (self.runs and stop.only is None):
                self.stops.remove(stop)
                self.answer(stop.reply, {})
            elif left and time.monotonic() >= stop.deadline and stop.only is None:
                kill_below(os.getpid())
            elif left and time.monotonic() >= stop.deadline:
                signal_all(left, signal.SIGKILL)
                if stop.is_group:
                    self.force_groups(stop, left)

    def force_groups(self, stop: Stop, leaders: list[int]) -> None:
        """SIGKILL to process groups. A run that lives on, or whose output somebody holds, is given up in the end."""
        for pid in leaders:
            signal_group(pid, signal.SIGKILL)
        for run in [run for run in self.runs.values() if run.pid in leaders]:
            run.give_up_at = max(run.give_up_at, stop.give_up_at)
            if time.monotonic() >= stop.give_up_at:
                run.is_dormant = True
                held = bool(run.pipes)
                for fd in list(run.pipes):
                    self.close_pipe(run, fd)
                self.end_run(run, held, [])

    def enforce_limits(self) -> None:
        """Without a daemon: the deadline of the job, and how long it may go on alone."""
        if self.link.is_connected or self.expired:
            return
        over = self.deadline is not None and time.time() >= self.deadline
        if self.orphan_grace is not None:
            over = over or self.link.alone_s >= self.orphan_grace
        if over:
            self.expired = True
            groups = [run.name for run in self.runs.values() if run.is_group]
            if groups:
                self.stop_groups(groups, ORPHAN_KILL_S, None)
            else:
                self.begin_stop(ORPHAN_KILL_S, None)

    # Files

    def start_files(self, request: Message) -> None:
        """Do file operations with the job user's rights: in a child that has them, where this process has others."""
        if not self.user:
            self.link.send({"id": request["id"], **self.operate_all(request)})
            return
        read_fd, write_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.close(read_fd)
                drop_privileges(self.user)
                write_all(write_fd, json.dumps(self.operate_all(request)).encode())
            finally:
                os._exit(0)
        self.own_children.add(pid)
        os.close(write_fd)
        os.set_blocking(read_fd, False)
        self.file_jobs[read_fd] = (request["id"], [])
        self.epoll.register(read_fd, select.EPOLLIN)

    def open_channel(self, request: Message) -> None:
        """Have a child with the job user's rights read and write files for whoever listens at a socket of the record."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.connect(f"/proc/self/fd/{self.dir_fd}/{request['socket']}")
            pid = os.fork()
            if pid == 0:
                try:
                    drop_privileges(self.user)
                    serve_channel(sock, self.roots, request["root"])
                finally:
                    os._exit(0)
            self.own_children.add(pid)
        finally:
            sock.close()
        self.link.send({"id": request["id"]})

    def operate_all(self, request: Message) -> Message:
        """The results of the operations, or the first error."""
        try:
            return {"results": [operate(self.roots, operation) for operation in request["operations"]]}
        except OSError as error:
            return {"error": f"{error.filename or ''}: {error.strerror}"}
        except Exception as error:
            return {"error": str(error)}

    def read_files_answer(self, fd: int) -> None:
        """Collect the child's answer."""
        reply, parts = self.file_jobs[fd]
        data = os.read(fd, READ_BYTES)
        if data:
            parts.append(data)
            return
        self.epoll.unregister(fd)
        os.close(fd)
        del self.file_jobs[fd]
        answer = json.loads(b"".join(parts)) if parts else {"error": "the file operation was killed"}
        self.answer(reply, answer)

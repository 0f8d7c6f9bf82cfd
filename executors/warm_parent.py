"""The process that supervisors are forked from: warm, single-threaded, in an interpreter of its own.

It has one socket, to the daemon, and ends with it; the supervisors live on. Standard library only.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import sys

from executors.namespaces import make_view
from executors.supervisor import Supervisor

# Type names only: importing ``typing`` would cost a third of the memory of a supervisor.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from executors.supervisor import Message

PR_SET_CHILD_SUBREAPER = 36


def main() -> None:
    """The warm parent: one request a line, answered once the supervisor's socket can be connected to."""
    link = socket.socket(fileno=int(sys.argv[1]))
    libc = ctypes.CDLL(None, use_errno=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    buffer = b""
    while True:
        reap()
        ready, _, _ = select.select([link], [], [], 5.0)
        if not ready:
            continue
        data = link.recv(65536)
        if not data:
            return
        buffer += data
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            request = json.loads(line)
            answer = probe(request) if request.get("probe") else spawn(link, libc, request)
            if answer is None:
                return
            link.sendall(json.dumps(answer).encode() + b"\n")


def reap() -> None:
    """Forget supervisors that have ended."""
    while True:
        try:
            pid, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return


def probe(request: Message) -> Message:
    """Whether jobs can have a view of their own of the file system."""
    try:
        make_view([]).close()
    except OSError as error:
        return {"id": request["id"], "error": error.strerror}
    return {"id": request["id"]}


def spawn(link: socket.socket, libc: ctypes.CDLL, request: Message) -> Message | None:
    """Fork a supervisor, unless the record has one. None in a warm parent whose daemon is gone, and in the child once its
    work is over."""
    directory = request["directory"]
    try:
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        lock_fd = os.open("supervisor.lock", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=dir_fd)
    except OSError as error:
        return {"id": request["id"], "error": f"{directory}: {error.strerror}"}
    listener = None
    try:
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return {"id": request["id"]}
        try:
            os.unlink("control.sock", dir_fd=dir_fd)
        except FileNotFoundError:
            pass
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(f"/proc/self/fd/{dir_fd}/control.sock")
        listener.listen(4)
        gone, _, _ = select.select([link], [], [], 0)
        if gone and not link.recv(1, socket.MSG_PEEK):
            return None
        if os.fork() == 0:
            link.close()
            code = 1
            try:
                os.setsid()
                libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
                Supervisor(dir_fd, lock_fd, listener).run()
                code = 0
            finally:
                os._exit(code)
        return {"id": request["id"]}
    finally:
        os.close(dir_fd)
        os.close(lock_fd)
        if listener is not None:
            listener.close()

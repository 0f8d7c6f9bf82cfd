"""A view of the file system that one job alone has: directories of this host, mounted where nobody else sees them.

The view is two namespaces. In the mount namespace the directories appear; the user namespace, which maps every id to itself,
keeps processes of other jobs out that run under the same user: the kernel lets them look through ``/proc/<pid>/root`` or trace
a process only within one user namespace. Standard library only.
"""

from __future__ import annotations

import ctypes
import os

# Type names only: importing ``typing`` would cost a third of the memory of a supervisor.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 1 << 19
ALL_IDS = b"0 0 4294967295\n"

_libc = ctypes.CDLL(None, use_errno=True)


class View:
    """Descriptors of the two namespaces. They keep the view alive, whoever made it."""

    def __init__(self, mount_fd: int, user_fd: int) -> None:
        self.mount_fd = mount_fd
        self.user_fd = user_fd

    def enter(self) -> None:
        """Make this process, which must be root's and of one thread, see it. Raises :class:`OSError`."""
        _check(_libc.setns(self.mount_fd, CLONE_NEWNS), "setns")
        _check(_libc.setns(self.user_fd, CLONE_NEWUSER), "setns")

    def close(self) -> None:
        """Let go of it."""
        os.close(self.mount_fd)
        os.close(self.user_fd)


def make_view(mounts: list[dict[str, Any]]) -> View:
    """A view in which each ``source`` is at its ``target``, an existing directory. Raises :class:`OSError`."""
    ready_read, ready_write = os.pipe()
    seen_read, seen_write = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            os.close(ready_read)
            os.close(seen_write)
            _hold_view(mounts, ready_write, seen_read)
        os.close(ready_write)
        ready_write = -1
        try:
            problem = os.read(ready_read, 1024).decode()
            if problem != "made":
                raise OSError(0, problem or "the process that makes it died")
            return _take_view(pid)
        finally:
            os.close(seen_write)
            seen_write = -1
            os.waitpid(pid, 0)
    finally:
        for fd in (ready_read, ready_write, seen_read, seen_write):
            if fd >= 0:
                os.close(fd)


def _hold_view(mounts: list[dict[str, Any]], ready_fd: int, seen_fd: int) -> None:
    """In a child: move into new namespaces, and stay until somebody else has opened them. Never returns."""
    try:
        _check(_libc.unshare(CLONE_NEWNS), "unshare")
        # What the host mounts later is seen; what is mounted here is not seen by the host.
        _mount(b"none", b"/", MS_REC | MS_SLAVE)
        for mount in mounts:
            source, target = os.fsencode(mount["source"]), os.fsencode(mount["target"])
            _mount(source, target, MS_BIND)
            locked = MS_RDONLY if mount["read_only"] else 0
            _mount(b"none", target, MS_BIND | MS_REMOUNT | MS_NOSUID | MS_NODEV | locked)
        _check(_libc.unshare(CLONE_NEWUSER), "unshare")
        os.write(ready_fd, b"made")
        os.read(seen_fd, 1)
    except OSError as error:
        os.write(ready_fd, f"{error.filename}: {error.strerror}".encode())
    finally:
        os._exit(0)


def _take_view(pid: int) -> View:
    """Open the namespaces of a child; only its parent may say that ids stay what they are."""
    for name in ("uid_map", "gid_map"):
        fd = os.open(f"/proc/{pid}/{name}", os.O_WRONLY)
        try:
            os.write(fd, ALL_IDS)
        finally:
            os.close(fd)
    mount_fd = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY)
    try:
        return View(mount_fd, os.open(f"/proc/{pid}/ns/user", os.O_RDONLY))
    except OSError:
        os.close(mount_fd)
        raise


def _mount(source: bytes, target: bytes, flags: int) -> None:
    _check(_libc.mount(source, target, None, flags, None), f"mount {os.fsdecode(target)}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)

"""The end of a file channel that has the rights of a job's user. Standard library only.

The other end asks in messages of many files at once, and contents of small files travel inside the messages; of a large
one a descriptor does.
"""

from __future__ import annotations

import array
import errno
import os
import socket
import stat
import struct

from executors.file_operations import Roots, clear_way, open_regular_at, write_all
from executors.open_directories import OpenDirectories

# First byte of a message: read these paths (NUL between them), write these entries, or open a file without a name in this
# directory, which may be anywhere.
READ, WRITE, SCRATCH = b"R", b"W", b"S"
# Kinds of entries: NEW asks for a descriptor of a new file, ADORN for mode, time and owner of what is there.
DIR, FILE, NEW, LINK, ADORN = range(5)
# Kind, mode, time in ns, user, group (-1: nobody in particular), bytes of the path, bytes of content or target.
ENTRY = struct.Struct("<BIqiiII")
# Number of the file in its message, errno, bytes of content behind this head or, with a descriptor, of the file.
ANSWER = struct.Struct("<IIQ")
SMALL_BYTES = 64 * 1024
BATCH_BYTES = 64 * 1024
MESSAGE_BYTES = 256 * 1024


def serve_channel(sock: socket.socket, roots: Roots, root: str) -> None:
    """Answer the messages about what lies below ``root`` until the other end closes."""
    directories = OpenDirectories(roots, root)
    while message := sock.recv(MESSAGE_BYTES):
        if message[:1] == READ:
            read_batch(sock, directories, message[1:])
        elif message[:1] == SCRATCH:
            send_scratch(sock, os.path.join(root, os.fsdecode(message[1:])))
        else:
            write_batch(sock, directories, memoryview(message)[1:])


def send_descriptor(sock: socket.socket, answer: bytes, fd: int) -> None:
    """Send an answer with a descriptor, which is closed here."""
    try:
        sock.sendmsg([answer], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [fd]))])
    finally:
        os.close(fd)


def send_scratch(sock: socket.socket, directory: str) -> None:
    """Answer with a descriptor of a file without a name, which goes when the last one closes it; or with the error."""
    try:
        fd = open_scratch(directory)
    except OSError as error:
        sock.sendall(ANSWER.pack(0, error.errno or errno.EIO, 0))
        return
    send_descriptor(sock, ANSWER.pack(0, 0, 0), fd)


def open_scratch(directory: str) -> int:
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):
            raise
    # Not every file system has files without names.
    path = os.path.join(directory, f"artifacts{os.urandom(8).hex()}")
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    os.unlink(path)
    return fd


def read_batch(sock: socket.socket, directories: OpenDirectories, paths: bytes) -> None:
    """Answer with contents, descriptors and errors, in the order of the paths."""
    parts: list[bytes] = []
    waiting = 0
    for number, path in enumerate(os.fsdecode(paths).split("\0")):
        try:
            parent_fd, name = directories.parent(path)
            fd, size = open_regular_at(parent_fd, name)
            if size > SMALL_BYTES:
                if parts:
                    sock.sendall(b"".join(parts))
                    parts, waiting = [], 0
                send_descriptor(sock, ANSWER.pack(number, 0, size), fd)
                continue
            content = read_small(fd, size)
        except OSError as error:
            parts.append(ANSWER.pack(number, error.errno or errno.EIO, 0))
            continue
        parts += (ANSWER.pack(number, 0, len(content)), content)
        waiting += len(content)
        if waiting >= BATCH_BYTES:
            sock.sendall(b"".join(parts))
            parts, waiting = [], 0
    if parts:
        sock.sendall(b"".join(parts))


def read_small(fd: int, size: int) -> bytes:
    """At most ``size`` bytes of a file, whose descriptor is closed."""
    try:
        content = os.read(fd, size) if size else b""
        while content and len(content) < size and (data := os.read(fd, size - len(content))):
            content += data
        return content
    finally:
        os.close(fd)


def write_batch(sock: socket.socket, directories: OpenDirectories, message: memoryview) -> None:
    """Make entries; one answer: with the descriptor of the last, or the first error and whose it is."""
    at = number = 0
    fd = -1
    try:
        while at < len(message):
            kind, mode, mtime_ns, uid, gid, path_size, size = ENTRY.unpack_from(message, at)
            at += ENTRY.size
            path = os.fsdecode(bytes(message[at : at + path_size]))
            content = message[at + path_size : at + path_size + size]
            at += path_size + size
            if kind == DIR:
                directories.make(path)
            elif kind == ADORN:
                adorn(directories, path, mode, mtime_ns, uid, gid)
            else:
                parent_fd, name = directories.parent(path, create=True)
                try:
                    fd = make(parent_fd, name, content if kind == LINK else None)
                except FileExistsError:
                    directories.forget(path)
                    clear_way(parent_fd, name)
                    fd = make(parent_fd, name, content if kind == LINK else None)
                if kind == LINK:
                    own(parent_fd, name, uid, gid)
                    os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent_fd, follow_symlinks=False)
            if kind == FILE:
                write_all(fd, content)
                dress(fd, mode, mtime_ns, uid, gid)
                os.close(fd)
                fd = -1
            number += 1
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        sock.sendall(ANSWER.pack(number, error.errno or errno.EIO, 0))
        return
    answer = ANSWER.pack(number, 0, 0)
    if fd >= 0:
        send_descriptor(sock, answer, fd)
    else:
        sock.sendall(answer)


def make(parent_fd: int, name: str, target: memoryview | None) -> int:
    """A descriptor of a new file that nobody else may read yet, or -1 and a link to ``target``."""
    if target is not None:
        os.symlink(os.fsdecode(bytes(target)), name, dir_fd=parent_fd)
        return -1
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=parent_fd)


def adorn(directories: OpenDirectories, path: str, mode: int, mtime_ns: int, uid: int, gid: int) -> None:
    """Give a file or directory its mode, time and owner; what is gone meanwhile needs none."""
    try:
        parent_fd, name = directories.parent(path)
        about = os.lstat(name, dir_fd=parent_fd)
        if not stat.S_ISREG(about.st_mode) and not stat.S_ISDIR(about.st_mode):
            return
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent_fd)
    except FileNotFoundError:
        return
    try:
        dress(fd, mode, mtime_ns, uid, gid)
    finally:
        os.close(fd)


def dress(fd: int, mode: int, mtime_ns: int, uid: int, gid: int) -> None:
    """Owner (only root may give files away), time and mode of an open file."""
    if uid >= 0 and os.geteuid() == 0:
        try:
            os.fchown(fd, uid, gid)
        except OSError:
            pass  # not every file system has owners
    os.utime(fd, ns=(mtime_ns, mtime_ns))
    os.fchmod(fd, mode)


def own(parent_fd: int, name: str, uid: int, gid: int) -> None:
    """The owner of a link."""
    if uid >= 0 and os.geteuid() == 0:
        try:
            os.chown(name, uid, gid, dir_fd=parent_fd, follow_symlinks=False)
        except OSError:
            pass

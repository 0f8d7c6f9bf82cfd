"""File operations in the workspace of a job, for a process that has its user's rights. Standard library only.

Every component below one of the job's directories is opened without following links.
"""

from __future__ import annotations

import base64
import errno
import os
import stat

# Type names only: importing ``typing`` would cost a third of the memory of a supervisor.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]


# Directories inside of each other: each costs a descriptor and a call while a tree is walked.
MAX_DEPTH = 200
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "dir", stat.S_IFLNK: "link"}


def write_all(fd: int, data: bytes | memoryview) -> None:
    """Write everything; a pipe or a file may take it in pieces."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def create_private(path: str) -> int:
    """A descriptor of a new or emptied file (0600) of the runner's own, for writing."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)


def write_private(path: str, content: bytes) -> None:
    """Create or replace a file that only this user reads."""
    fd = create_private(path)
    try:
        write_all(fd, content)
    finally:
        os.close(fd)


def operate(roots: Roots, operation: Message) -> Any:
    """Carry out one operation; its result is JSON."""
    kind = operation["kind"]
    path = operation["path"]
    if kind == "make_dir":
        return make_dir(roots, path)
    if kind == "write":
        return write_file(roots, path, base64.b64decode(operation["data"]), operation["mode"])
    if kind == "read":
        return read_file(roots, path, operation["limit"])
    if kind == "remove":
        return remove(roots, path)
    if kind == "remove_matching":
        return remove_matching(roots, path, set(operation["names"]), tuple(operation["suffixes"]))
    if kind == "list":
        return list_tree(roots, path, operation["max_depth"])
    if kind == "clear_path":
        return clear_path(roots, path)
    if kind == "kept_by":
        return kept_by(path)
    if kind == "exists":
        return exists(roots, path)
    raise OSError(errno.EINVAL, f"unknown file operation {kind}", path)


class Roots:
    """The directories of a job. Other paths are refused.

    Below ``base``, which is the host owner's, no link is followed on the way to one of them, either; where it is empty links
    above the directories are.
    """

    def __init__(self, paths: list[str], base: str = "") -> None:
        self.paths = [os.path.normpath(path) for path in paths]
        self.base = os.path.normpath(base) if base else ""

    def split(self, path: str) -> tuple[str, list[str]]:
        """Where the way to ``path`` begins, and its components from there: one at least."""
        path = os.path.normpath(path)
        for root in self.paths:
            if path == root or is_below(path, root):
                start = self.base if self.base and is_below(root, self.base) else os.path.dirname(root)
                return start, path[len(start.rstrip("/")) + 1 :].split("/")
        raise OSError(errno.EPERM, "outside of the job's directories", path)

    def may_be_planted(self, fd: int, path: str) -> bool:
        """Whether a job could have put what is at ``path``, in the directory ``fd``: above its own directories only where it
        may write. A link that it could not have made is the host owner's."""
        if any(path == root or is_below(path, root) for root in self.paths):
            return True
        return os.fstat(fd).st_uid == os.geteuid() or os.access(f"/proc/self/fd/{fd}", os.W_OK, effective_ids=True)


def is_below(path: str, root: str) -> bool:
    return path.startswith(root.rstrip("/") + "/")


def open_parent(roots: Roots, path: str, *, create: bool = False, mode: int = 0o777) -> tuple[int, str]:
    """A descriptor of the directory above ``path`` and the last component; missing directories are made with ``create``."""
    walked, parts = roots.split(path)
    if create:
        os.makedirs(walked, exist_ok=True)
    fd = os.open(walked, os.O_RDONLY | os.O_DIRECTORY)
    walked = walked.rstrip("/")
    for part in parts[:-1]:
        walked += f"/{part}"
        try:
            if create:
                try:
                    os.mkdir(part, mode, dir_fd=fd)
                except FileExistsError:
                    pass
            flags = os.O_NOFOLLOW if roots.may_be_planted(fd, walked) else 0
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=fd)
        except OSError as error:
            raise OSError(error.errno, error.strerror, walked) from None
        finally:
            os.close(fd)
        fd = inner
    return fd, parts[-1]


def clear_path(roots: Roots, path: str) -> list[str]:
    """Take away what stands in the place of a directory above ``path``: a link, a file. Names what was taken."""
    walked, parts = roots.split(path)
    try:
        fd = os.open(walked, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:
        return []
    walked = walked.rstrip("/")
    for part in parts[:-1]:
        walked += f"/{part}"
        try:
            planted = roots.may_be_planted(fd, walked)
            if planted and not stat.S_ISDIR(os.lstat(part, dir_fd=fd).st_mode):
                os.unlink(part, dir_fd=fd)
                return [walked]
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | (os.O_NOFOLLOW if planted else 0), dir_fd=fd)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise OSError(error.errno, error.strerror, walked) from None
        finally:
            os.close(fd)
        fd = inner
    os.close(fd)
    return []


def kept_by(path: str) -> list[Any]:
    """What keeps this account from writing at ``path``, as [path, owner's id]: what is there, or the nearest directory above
    it, when that is somebody else's. Empty where nothing does; what a job has closed to itself is its own."""
    while not os.path.lexists(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    about = os.stat(path)
    wanted = os.W_OK | (os.X_OK if stat.S_ISDIR(about.st_mode) else 0)
    if about.st_uid == os.geteuid() or os.access(path, wanted, effective_ids=True):
        return []
    return [path, about.st_uid]


def make_dir(roots: Roots, path: str) -> None:
    fd, name = open_parent(roots, path, create=True)
    try:
        os.mkdir(name, 0o777, dir_fd=fd)
    except FileExistsError:
        if not stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
            raise OSError(errno.ENOTDIR, "something else is in the place of a directory", path) from None
    finally:
        os.close(fd)


def write_file(roots: Roots, path: str, data: bytes, mode: int) -> None:
    fd, name = open_parent(roots, path, create=True)
    try:
        remove_entry(fd, name)
        file_fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode, dir_fd=fd)
        write_all(file_fd, data)
        os.close(file_fd)
    finally:
        os.close(fd)


def read_file(roots: Roots, path: str, limit: int) -> str | None:
    try:
        fd, name = open_parent(roots, path)
    except OSError:
        return None
    try:
        file_fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    try:
        if not stat.S_ISREG(os.fstat(file_fd).st_mode):
            return None
        parts = []
        while limit > 0 and (data := os.read(file_fd, min(limit, 1 << 20))):
            parts.append(data)
            limit -= len(data)
        return base64.b64encode(b"".join(parts)).decode()
    finally:
        os.close(file_fd)


def exists(roots: Roots, path: str) -> bool:
    try:
        fd, name = open_parent(roots, path)
    except OSError:
        return False
    try:
        os.lstat(name, dir_fd=fd)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)


def remove(roots: Roots, path: str) -> None:
    try:
        fd, name = open_parent(roots, path)
    except FileNotFoundError:
        return
    except NotADirectoryError:
        return
    try:
        remove_entry(fd, name)
    finally:
        os.close(fd)


def remove_entry(parent_fd: int, name: str) -> None:
    """Remove a file, a link, or a whole tree; what stands in the way is made writable first."""
    try:
        mode = os.lstat(name, dir_fd=parent_fd).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        os.unlink(name, dir_fd=parent_fd)
        return
    fd = open_for_removal(parent_fd, name, mode)
    try:
        while empty(fd, fd, 1):
            pass
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)


def open_for_removal(parent_fd: int, name: str, mode: int) -> int:
    """A descriptor of a directory that may be emptied."""
    if mode & 0o700 != 0o700:
        try:
            os.chmod(name, stat.S_IMODE(mode) | 0o700, dir_fd=parent_fd)
        except OSError:
            pass
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent_fd)


def empty(fd: int, top_fd: int, depth: int) -> bool:
    """Remove what is in a directory. What lies too deep is moved to the top of the tree: then there is more to do."""
    moved = False
    for entry in os.listdir(fd):
        mode = os.lstat(entry, dir_fd=fd).st_mode
        if not stat.S_ISDIR(mode):
            os.unlink(entry, dir_fd=fd)
            continue
        inner = open_for_removal(fd, entry, mode)
        try:
            if depth == MAX_DEPTH:
                os.rename(entry, f".{os.urandom(8).hex()}", src_dir_fd=fd, dst_dir_fd=top_fd)
                moved = True
                continue
            moved |= empty(inner, top_fd, depth + 1)
        finally:
            os.close(inner)
        os.rmdir(entry, dir_fd=fd)
    return moved


def open_dir(roots: Roots, path: str) -> int | None:
    """A descriptor of a directory, no link followed; None when there is none."""
    try:
        fd, name = open_parent(roots, path)
    except OSError:
        return None
    try:
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
    except OSError:
        return None
    finally:
        os.close(fd)


def remove_matching(roots: Roots, path: str, names: set[str], suffixes: tuple[str, ...]) -> None:
    fd = open_dir(roots, path)
    if fd is None:
        return
    try:
        clear_matching(fd, names, suffixes, 1)
    finally:
        os.close(fd)


def clear_matching(fd: int, names: set[str], suffixes: tuple[str, ...], depth: int) -> None:
    for entry in os.listdir(fd):
        mode = os.lstat(entry, dir_fd=fd).st_mode
        if entry in names or (suffixes and stat.S_ISREG(mode) and entry.endswith(suffixes)):
            remove_entry(fd, entry)
        elif stat.S_ISDIR(mode) and depth < MAX_DEPTH:
            inner = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            try:
                clear_matching(inner, names, suffixes, depth + 1)
            finally:
                os.close(inner)


def list_tree(roots: Roots, path: str, max_depth: int | None) -> list[Any]:
    fd = open_dir(roots, path)
    if fd is None:
        return []
    found: list[Any] = []
    try:
        walk(fd, "", 1, max_depth, found)
    finally:
        os.close(fd)
    return found


def walk(fd: int, prefix: str, depth: int, max_depth: int | None, found: list[Any]) -> None:
    for entry in sorted(os.listdir(fd)):
        try:
            about = os.lstat(entry, dir_fd=fd)
        except FileNotFoundError:
            continue
        mode = about.st_mode
        kind = KINDS.get(mode & 0o170000, "other")
        target = read_link(fd, entry) if kind == "link" else ""
        facts = (prefix + entry, kind, mode & 0o7777, about.st_size, about.st_mtime_ns, target, about.st_uid, about.st_gid)
        found.append(facts)
        if kind == "dir" and (max_depth is None or depth < max_depth):
            if depth == MAX_DEPTH:
                raise OSError(errno.ELOOP, f"more than {MAX_DEPTH} directories inside of each other", f"{prefix[:200]}...")
            try:
                inner = os.open(entry, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd)
            except OSError:
                # Gone meanwhile, or closed to the job's user: nobody can say what is in it.
                continue
            try:
                walk(inner, f"{prefix}{entry}/", depth + 1, max_depth, found)
            finally:
                os.close(inner)


def read_link(fd: int, entry: str) -> str:
    """What a link contains; nothing where it has become something else meanwhile."""
    try:
        return os.readlink(entry, dir_fd=fd)
    except OSError:
        return ""


def clear_way(parent_fd: int, name: str) -> None:
    """Remove what stands in the place of a file, but nothing that is in a directory."""
    try:
        os.unlink(name, dir_fd=parent_fd)
    except FileNotFoundError:
        pass
    except (IsADirectoryError, PermissionError):
        os.rmdir(name, dir_fd=parent_fd)


def open_regular(roots: Roots, path: str) -> int:
    """A descriptor of a regular file for reading, no link followed; something else is EINVAL."""
    parent_fd, name = open_parent(roots, path)
    try:
        return open_regular_at(parent_fd, name)[0]
    finally:
        os.close(parent_fd)


def open_regular_at(parent_fd: int, name: str) -> tuple[int, int]:
    """The same for a name in an open directory, and its size."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent_fd)
    about = os.fstat(fd)
    if not stat.S_ISREG(about.st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file", name)
    return fd, about.st_size

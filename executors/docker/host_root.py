"""A small root file system made of programs of this host, for containers that do the runner's own work.

Programs keep their places, with the libraries that they are linked to. The same content makes the same archive.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import IO

from executors.errors import ExecutorError

# Without these there is no helper; a busybox may stand in for all but git.
REQUIRED = """
sh git tar find cat chmod chown cp date dd du env head id ls ln mkdir mktemp mv printf readlink rm rmdir sed sleep sort stat
tail test touch tr uname wc xargs grep cut basename dirname
"""
OPTIONAL = """
bash busybox gzip timeout nc ssh git-lfs hostname kill ps tee uniq sha256sum sync true false echo expr
"""
GIT_PROGRAMS = """
git-remote-http git-remote-https git-remote-ftp git-remote-ftps git-submodule git-sh-setup git-sh-i18n git-sh-i18n--envsubst
git-http-fetch
"""
# Names under which git calls itself when a repository lies on the same host.
GIT_SERVERS = ("git-upload-pack", "git-receive-pack", "git-upload-archive")
CERTIFICATES = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
    "/etc/ssl/ca-bundle.pem",
)
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TEXTS = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
    "etc/group": "root:x:0:\nnogroup:x:65534:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
_DIRECTORIES = (
    "dev",
    "proc",
    "sys",
    "root",
    "run",
    "usr/bin",
    "usr/sbin",
    "usr/lib",
    "usr/lib64",
    "usr/share/git-core/templates",
)
_ROOT_LINKS = ("bin", "sbin", "lib", "lib64")
_LIBRARY = re.compile(r"(/\S+) \(0x")
_LONGEST_CHAIN = 20


class HostIncomplete(ExecutorError):
    """This host lacks what a helper image is made of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """An entry: a regular file of the host (``source``) or of these bytes, a link, or a directory."""

    path: str
    mode: int = 0o755
    source: Path | None = None
    text: bytes | None = None
    target: str = ""


@dataclass(slots=True)
class HostRoot:
    """The entries by their paths, without a slash in front; see :func:`host_root`."""

    members: dict[str, Member] = field(default_factory=dict)

    def signature(self) -> tuple[object, ...]:
        """Changes when any of the host's files is replaced; costs a ``stat`` for each."""
        found: list[object] = []
        for member in self.members.values():
            if member.source is not None:
                try:
                    about = member.source.stat()
                except OSError:
                    found.append((member.source, None))
                    continue
                found.append((member.source, about.st_ino, about.st_size, about.st_mtime_ns))
        return tuple(found)

    def digest(self) -> str:
        """Stands for names, modes and content: twelve hexadecimal digits."""
        total = hashlib.sha256()
        for path, member in sorted(self.members.items()):
            total.update(repr((path, member.mode, member.target, member.text)).encode())
            if member.source is not None:
                with member.source.open("rb") as file:
                    total.update(hashlib.file_digest(file, "sha256").digest())
        return total.hexdigest()[:12]

    def write(self, target: IO[bytes]) -> None:
        """The root as a tar; everything belongs to root."""
        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path, member in sorted(self.members.items()):
                about = tarfile.TarInfo(path)
                about.mode = member.mode
                if member.source is not None:
                    with member.source.open("rb") as file:
                        about.size = os.fstat(file.fileno()).st_size
                        archive.addfile(about, file)
                elif member.text is not None:
                    about.size = len(member.text)
                    archive.addfile(about, BytesIO(member.text))
                else:
                    about.type = tarfile.SYMTYPE if member.target else tarfile.DIRTYPE
                    about.linkname = member.target
                    archive.addfile(about)

    # Putting it together

    def _add(self, member: Member) -> None:
        for above in list(Path(member.path).parents)[:-1]:
            if str(above) not in self.members:
                self.members[str(above)] = Member(path=str(above))
        self.members.setdefault(member.path, member)

    def add_file(self, path: str) -> None:
        """A file of the host; links that lead to it are kept as links."""
        for _ in range(_LONGEST_CHAIN):
            here = Path(path)
            place = _place(path)
            if not here.is_symlink():
                mode = stat.S_IMODE(here.stat().st_mode) & 0o755
                self._add(Member(path=place, mode=mode, source=here))
                return
            target = os.path.normpath(here.parent.resolve() / here.readlink())
            if place != _place(target):
                self._add(Member(path=place, mode=0o777, target=f"/{_place(target)}"))
            path = target

    def add_link(self, path: str, target: str) -> None:
        """A link of our own."""
        self._add(Member(path=_place(path), mode=0o777, target=target))

    def add_text(self, path: str, text: str) -> None:
        """A file of our own."""
        self._add(Member(path=path, mode=0o644, text=text.encode()))

    def add_directory(self, path: str, mode: int = 0o755) -> None:
        """An empty directory."""
        self._add(Member(path=path, mode=mode))


def _place(path: str) -> str:
    """Where a path of the host is in the root: what may lie beside ``/usr`` lies in it."""
    return re.sub(rf"^/({'|'.join(_ROOT_LINKS)})/", r"usr/\1/", os.path.normpath(path)).lstrip("/")


def host_root() -> HostRoot:
    """The root of this host as it is now. Raises :class:`HostIncomplete`, which names what is missing."""
    root = HostRoot()
    for name in _ROOT_LINKS:
        root.add_link(f"/{name}", f"usr/{name}")
    for path in _DIRECTORIES:
        root.add_directory(path)
    for path in ("tmp", "var/tmp"):
        root.add_directory(path, 0o1777)
    for path, text in _TEXTS.items():
        root.add_text(path, text)
    programs = [*_programs(root), *_git_programs(root)]
    try:
        for path in programs:
            root.add_file(path)
        for path in [*_libraries(programs), *_name_services(), *_certificates()]:
            root.add_file(path)
    except OSError as error:
        raise HostIncomplete(f"the helper image cannot be made of this host: {error}") from error
    return root


def _programs(root: HostRoot) -> list[str]:
    busybox = shutil.which("busybox", path=SEARCH_PATH)
    found, missing = [], []
    required = REQUIRED.split()
    for name in (*required, *OPTIONAL.split()):
        path = shutil.which(name, path=SEARCH_PATH) or (shutil.which(name) if name.startswith("git") else None)
        if path is not None:
            found.append(path)
        elif busybox is not None and name != "git" and not name.startswith("git-"):
            root.add_link(f"/usr/bin/{name}", f"/{_place(busybox)}")
        elif name in required:
            missing.append(name)
    if missing:
        text = f"the helper image cannot be made of this host, which lacks {', '.join(missing)}"
        raise HostIncomplete(f'{text}: install them, or set "helper_image" in [runners.docker]')
    return found


def _git_programs(root: HostRoot) -> list[str]:
    git = shutil.which("git", path=SEARCH_PATH) or "git"
    said = subprocess.run([git, "--exec-path"], capture_output=True, text=True, check=False)
    folder = Path(said.stdout.strip() or "/usr/lib/git-core")
    for name in GIT_SERVERS:
        root.add_link(str(folder / name), f"/{_place(git)}")
    return [str(folder / name) for name in GIT_PROGRAMS.split() if (folder / name).exists()]


def _libraries(programs: Sequence[str]) -> list[str]:
    """Everything that the loader maps for these programs, itself included; scripts and static programs need nothing."""
    # Musl's ldd takes one program at a time, glibc's is much faster with all of them.
    is_musl = any(Path("/lib").glob("ld-musl-*"))
    found: set[str] = set()
    for batch in [[program] for program in programs] if is_musl else [programs]:
        said = subprocess.run(["ldd", *batch], capture_output=True, text=True, check=False)
        found.update(_LIBRARY.findall(said.stdout))
    return sorted(found)


def _name_services() -> list[str]:
    """What the C library loads to look names up, where that is not part of it, and to end threads."""
    names = ("libnss_files.so.2", "libnss_dns.so.2", "libresolv.so.2", "libgcc_s.so.1")
    folders = [*Path("/lib").glob("*-linux-gnu"), *Path("/usr/lib").glob("*-linux-gnu"), Path("/lib64"), Path("/usr/lib64")]
    found = {_place(str(path)): str(path) for folder in folders for name in names if (path := folder / name).exists()}
    return sorted(found.values())


def _certificates() -> list[str]:
    return [path for path in CERTIFICATES if Path(path).exists()]

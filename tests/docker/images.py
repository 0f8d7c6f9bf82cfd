"""Images for tests, made from what this machine has: no registry is needed.

An image is cached in the engine under a tag that stands for its content, and made under a lock by whichever test process
comes first.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import docker
import docker.errors

LOCK = Path(tempfile.gettempdir()) / f"pyrunner-docker-tests-{os.getuid()}.lock"
PROGRAMS = """
bash sh git tar find sed grep gzip xargs curl env id sleep cat ls mkdir rm rmdir mv cp ln chmod chown touch stat head tail wc
sort uniq tr cut seq date printf echo test true false uname hostname dd sha256sum md5sum mktemp readlink dirname basename tee
timeout kill ps setsid
"""
GIT_CORE = ("git-remote-http", "git-remote-https", "git-submodule", "git-sh-setup", "git-sh-i18n", "git-sh-i18n--envsubst")
ETC = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nworker:x:1000:1000::/tmp:/bin/sh\n",
    "etc/group": "root:x:0:\nworker:x:1000:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


class Root:
    """A root file system that is being put together; ``tar`` gives it, the same bytes for the same content. ``merged`` puts
    the old places of programs and libraries below ``usr``."""

    def __init__(self, *, merged: bool = True) -> None:
        self._entries: dict[str, tuple[str, int, str | bytes | Path]] = {}
        for name in ("tmp", "root", "etc", "proc", "sys", "dev", "usr/bin", "usr/lib", "usr/lib64", "var/tmp"):
            self.directory(name, 0o1777 if name.endswith("tmp") else 0o755)
        for name in ("bin", "lib", "lib64") if merged else ():
            self.link(name, f"usr/{name}")
        for path, text in ETC.items():
            self.text(path, text)

    def directory(self, path: str, mode: int = 0o755) -> None:
        self._entries[path] = ("dir", mode, "")

    def link(self, path: str, target: str) -> None:
        self._entries[path] = ("link", 0o777, target)

    def text(self, path: str, content: str, mode: int = 0o644) -> None:
        self._entries[path] = ("text", mode, content.encode())

    def file(self, path: str, source: Path) -> None:
        self._entries[path] = ("file", stat.S_IMODE(source.stat().st_mode), source)

    def program(self, source: Path) -> None:
        """A program of this machine with the libraries it is linked to; a script as it is."""
        place = _merged(str(source))
        self.file(place, source.resolve())
        self.libraries(source)

    def libraries(self, source: Path) -> None:
        """What a program or a library of this machine is linked to."""
        found = subprocess.run(["ldd", str(source)], capture_output=True, text=True, check=False).stdout
        for path in re.findall(r"(/\S+) \(0x", found):
            self.file(_merged(path), Path(path).resolve())

    def tree(self, source: Path, place: str, *, without: Collection[str] = ()) -> None:
        for folder, inner, names in os.walk(source):
            inner[:] = [name for name in inner if name not in without]
            inside = Path(place) / Path(folder).relative_to(source)
            self.directory(str(inside))
            for name in names:
                path = Path(folder, name)
                if path.is_file():
                    self.file(str(inside / name), path)

    def digest(self) -> str:
        """Stands for the content; sizes and times stand for that of large files."""
        found = hashlib.sha256()
        for path, (kind, mode, content) in sorted(self._entries.items()):
            about = content.stat() if isinstance(content, Path) else None
            said: object = (about.st_size, about.st_mtime_ns) if about is not None else content
            found.update(repr((path, kind, mode, said)).encode())
        return found.hexdigest()[:12]

    def write(self, archive: tarfile.TarFile) -> None:
        made: set[str] = set()
        for path, (kind, mode, content) in sorted(self._entries.items()):
            for above in reversed(Path(path).parents[:-1]):
                if str(above) not in self._entries and str(above) not in made:
                    made.add(str(above))
                    archive.addfile(_member(str(above), "dir", 0o755, ""))
            member = _member(path, kind, mode, content)
            if isinstance(content, Path):
                member.size = content.stat().st_size
                with content.open("rb") as file:
                    archive.addfile(member, file)
            elif kind == "text":
                assert isinstance(content, bytes)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                archive.addfile(member)


def _member(path: str, kind: str, mode: int, content: str | bytes | Path) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.mode = mode
    if kind == "dir":
        member.type = tarfile.DIRTYPE
    elif kind == "link":
        member.type = tarfile.SYMTYPE
        member.linkname = str(content)
    return member


def _merged(path: str) -> str:
    return re.sub(r"^/(bin|sbin|lib|lib64)/", r"usr/\1/", path).replace("usr/sbin/", "usr/bin/").lstrip("/")


def busybox() -> Root:
    """The static busybox with all of its applets, and nothing else."""
    program = shutil.which("busybox")
    assert program is not None, "busybox is missing: apt-get install busybox-static"
    root = Root(merged=False)
    root.file("bin/busybox", Path(program).resolve())
    for applet in subprocess.run([program, "--list"], capture_output=True, text=True, check=True).stdout.split():
        if applet != "busybox":
            root.link(f"bin/{applet}", "busybox")
    return root


def debian() -> Root:
    """Bash, git, curl and the usual tools, with the libraries they need."""
    root = Root()
    for name in PROGRAMS.split():
        program = shutil.which(name)
        assert program is not None, f"{name} is missing on this machine"
        root.program(Path(program))
    core = Path(subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip())
    for name in GIT_CORE:
        root.program(core / name)
    for library in Path("/lib").glob("*-linux-gnu/libnss_*.so.2"):
        root.file(_merged(str(library)), library.resolve())
    root.directory("usr/share/git-core/templates")
    bundle = Path("/etc/ssl/certs/ca-certificates.crt")
    if bundle.exists():
        root.file("etc/ssl/certs/ca-certificates.crt", bundle)
    return root


def golang() -> Root:
    """The same with this machine's Go."""
    goroot = subprocess.run(["go", "env", "GOROOT"], capture_output=True, text=True, check=True).stdout.strip()
    root = debian()
    root.tree(Path(goroot).resolve(), "usr/local/go")
    return root


def golang_with_c() -> Root:
    """The same with this machine's compiler of C."""
    root = golang()
    for name in ("gcc", "as", "ld"):
        program = shutil.which(name)
        assert program is not None, f"{name} is missing on this machine: apt-get install gcc libc6-dev"
        root.program(Path(program))
    for name in ("cc1", "collect2"):
        root.program(Path(_asked_of_gcc(f"-print-prog-name={name}")))
    own = Path(_asked_of_gcc("-print-libgcc-file-name")).parent
    for path in (*own.glob("crt*.o"), *own.glob("libgcc*"), own / "liblto_plugin.so"):
        root.file(_merged(str(path)), path.resolve())
    root.tree(own / "include", _merged(str(own / "include")))
    libraries = Path(_asked_of_gcc("-print-file-name=crt1.o")).resolve().parent
    for pattern in (
        "*crt*.o",
        "libc.so*",
        "libc_nonshared.a",
        "libm.so*",
        "libmvec.so*",
        "libgcc_s.so*",
        "lib*pthread*",
        "libdl*",
        "libres*",
        "librt*",
    ):
        for path in libraries.glob(pattern):
            root.file(_merged(str(path)), path.resolve())
    headers = Path("/usr/include")
    root.tree(headers, "usr/include", without={path.name for path in headers.iterdir() if path.is_dir() and not _is_of_c(path)})
    return root


def _asked_of_gcc(question: str) -> str:
    said = subprocess.run(["gcc", question], capture_output=True, text=True, check=True).stdout.strip()
    return os.path.normpath(said)


def _is_of_c(headers: Path) -> bool:
    """Whether a directory of headers belongs to the C library or to Linux."""
    return headers.name.endswith("-linux-gnu") or headers.name in {"linux", "asm-generic", "bits", "sys", "gnu", "arpa", "net"}


def python() -> Root:
    """The same with this machine's Python, and what an image with a daemon in it needs."""
    root = debian()
    for name in ("tini", "ldd", "du", "gzip"):
        program = shutil.which(name)
        assert program is not None, f"{name} is missing on this machine"
        root.program(Path(program))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    interpreter = Path(sys.base_prefix, "bin", version).resolve()
    root.file(f"usr/local/bin/{version}", interpreter)
    root.libraries(interpreter)
    for name in ("python3", "python"):
        root.link(f"usr/local/bin/{name}", version)
    library = Path(sysconfig.get_path("stdlib"))
    root.tree(library, f"usr/local/lib/{version}", without={"site-packages", "test", "tests", "idlelib", "__pycache__"})
    for extension in (library / "lib-dynload").glob("*.so"):
        root.libraries(extension)
    # What packages with compiled parts may ask for by names of older systems.
    for name in ("pthread.so.0", "dl.so.2", "rt.so.1", "m.so.6", "util.so.1", "gcc_s.so.1", "stdc++.so.6"):
        for path in Path("/usr/lib").glob(f"*-linux-gnu/lib{name}"):
            root.file(_merged(str(path)), path.resolve())
    return root


def empty() -> Root:
    """No program at all."""
    return Root()


@contextlib.contextmanager
def locked() -> Iterator[None]:
    """One process of this machine at a time."""
    with LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make(client: docker.APIClient, tag: str, root: Root, changes: Iterable[str] = ()) -> str:
    """The image ``tag`` with this content, imported unless it is there already."""
    settings = ["ENV PATH=/usr/local/bin:/usr/local/go/bin:/usr/bin:/bin", *changes]
    digest = hashlib.sha256(repr((root.digest(), settings)).encode()).hexdigest()[:12]
    content = f"pyrunner-test:{tag.replace(':', '-')}-{digest}"
    with locked():
        try:
            client.inspect_image(content)  # type: ignore[no-untyped-call]
        except docker.errors.ImageNotFound:
            with tempfile.TemporaryDirectory() as folder:
                path = f"{folder}/root.tar"
                with tarfile.open(path, mode="w") as archive:
                    root.write(archive)
                said: str = client.import_image_from_file(path, changes=settings)
            # Podman knows no tag here.
            repository, _, version = content.partition(":")
            client.tag(json.loads(said.splitlines()[-1])["status"], repository, version)
        repository, _, version = tag.partition(":")
        client.tag(content, repository, version)
    return tag

"""Real git repositories over smart HTTP, through ``git http-backend``."""

from __future__ import annotations

import asyncio
import gzip
import os
import subprocess
from pathlib import Path
from typing import Any

from aiohttp import web

GIT_ENVIRONMENT = {
    **{f"GIT_{role}_{what}": "lab@example.com" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
}


def git(*arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        ["git", *arguments], cwd=cwd, env={**os.environ, **GIT_ENVIRONMENT}, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def make_repositories(root: Path, described: dict[str, dict[str, Any]]) -> dict[str, str]:
    """Repositories with submodules, which name those described before them; their commits by name."""
    commits: dict[str, str] = {}
    for name, about in described.items():
        submodules = {}
        for path, url in (about.get("submodules") or {}).items():
            known = commits.get(url.rpartition("/")[2].removesuffix(".git"), "1" * 40)
            submodules[path] = (url, known)
        object_format = about.get("object_format", "sha1")
        commits[name] = make_repository(root, name, about["files"], submodules=submodules, object_format=object_format)
    return commits


def make_repository(
    root: Path,
    name: str,
    files: dict[str, str],
    *,
    submodules: dict[str, tuple[str, str]] | None = None,
    object_format: str = "sha1",
) -> str:
    """A bare repository ``root/name.git`` with one commit on ``main``; returns the commit.

    ``submodules`` maps paths to addresses and commits.
    """
    work = root / f"{name.replace('/', '-')}-work"
    for path, content in files.items():
        target = work / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(content)
        if path.endswith(".sh"):
            target.chmod(0o755)
    git("init", "--quiet", "--initial-branch=main", f"--object-format={object_format}", cwd=work)
    git("add", "--all", ".", cwd=work)
    for path, (url, commit) in (submodules or {}).items():
        for key, value in (("path", path), ("url", url)):
            git("config", "--file", ".gitmodules", f"submodule.{path}.{key}", value, cwd=work)
        git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}", cwd=work)
    if submodules:
        git("add", ".gitmodules", cwd=work)
    git("commit", "--quiet", "--message", "a commit", cwd=work)
    bare = root / f"{name}.git"
    bare.parent.mkdir(parents=True, exist_ok=True)
    git("clone", "--quiet", "--bare", str(work), str(bare), cwd=root)
    git("config", "uploadpack.allowAnySHA1InWant", "true", cwd=bare)
    return git("rev-parse", "HEAD", cwd=work)


async def serve(request: web.Request, root: Path) -> web.StreamResponse:
    """One request of the smart protocol; the path below ``/git`` names the repository."""
    body = await request.read()
    if request.headers.get("Content-Encoding") == "gzip":
        body = gzip.decompress(body)
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_PROJECT_ROOT": str(root),
        "GIT_HTTP_EXPORT_ALL": "1",
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "safe.directory",
        "GIT_CONFIG_VALUE_0": "*",
        "PATH_INFO": request.path.removeprefix("/git"),
        "QUERY_STRING": request.query_string,
        "REQUEST_METHOD": request.method,
        "CONTENT_TYPE": request.headers.get("Content-Type", ""),
        "CONTENT_LENGTH": str(len(body)),
        "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
        "REMOTE_ADDR": "127.0.0.1",
    }
    process = await asyncio.create_subprocess_exec(
        "git",
        "http-backend",
        env=environment,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    out, _ = await process.communicate(body)
    head, _, content = out.partition(b"\r\n\r\n")
    headers = dict(line.decode().split(": ", 1) for line in head.split(b"\r\n") if b": " in line)
    status = int(headers.pop("Status", "200").split()[0])
    return web.Response(status=status, headers=headers, body=content)

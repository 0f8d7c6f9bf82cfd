"""Artifacts as the server takes and gives them (``runner-api.md`` 9, 10), and the stores behind them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from email.utils import formatdate
from urllib.parse import quote

from aiohttp import web

from tests.fakes.job import EXECUTING, Artifact, Job

# Types that are zip or gzip files; all others are raw (``runner-api.md`` 11).
ZIP = ("archive", "lsif", "scip")
GZIP = (
    "junit",
    "metrics",
    "dotenv",
    "cobertura",
    "jacoco",
    "cyclonedx",
    "annotations",
    "repository_xray",
    "cluster_applications",
)
FORM = ("artifact_type", "artifact_format", "expire_in")
REFUSALS = ("file is missing", "Invalid file format with specified file type", "another artifact of the same type already exists")


class ArtifactStore:
    """``redirects`` sends direct downloads to ``/objects/…``, which refuses a JOB-TOKEN unless ``takes_tokens``.

    A ``strict`` one knows which format a type has and stores each type once.
    """

    def __init__(self, jobs: Mapping[int, Job], *, strict: bool, redirects: bool, takes_tokens: bool) -> None:
        self._jobs = jobs
        self._strict = strict
        self._redirects = redirects
        self._takes_tokens = takes_tokens
        self.base = ""

    async def upload(self, request: web.Request, job: Job) -> web.Response:
        artifact = _uploaded(request, await request.read())
        if artifact is None:
            return _refused(0)
        stored = next((one for one in job.artifacts if one.kind == artifact.kind), None)
        if self._strict and artifact.form.get("artifact_format", "zip") != _format_of(artifact.kind):
            return _refused(1)
        if self._strict and stored is not None and stored.content != artifact.content:
            return _refused(2)
        if stored is None or not self._strict:
            job.artifacts.append(artifact)
        return web.Response(status=201, text="201", content_type="application/json")

    async def download(self, request: web.Request) -> web.Response:
        """The token is one of a dependency (which has ended) or of any job that executes."""
        token = request.headers.get("JOB-TOKEN")
        target = self._jobs.get(int(request.match_info["id"]))
        owner = next((job for job in self._jobs.values() if token and job.token == token), None)
        if owner is None and target is None and not self._strict:
            return web.json_response({"message": "404 Not Found"}, status=404)
        if owner is None or (owner is not target and owner.state not in EXECUTING):
            return web.json_response({"message": "401 Unauthorized"}, status=401)
        archive = next((one for one in target.artifacts if one.kind == "archive"), None) if target is not None else None
        if target is None or archive is None:
            return web.json_response({"message": "404 Not Found"}, status=404)
        if self._redirects and request.query.get("direct_download") == "true":
            place = f"{self.base}/objects/{target.id}-{target.artifacts.index(archive)}-{quote(archive.file_name)}"
            return web.Response(status=302, headers={"Location": place})
        return _archive(archive)

    async def object(self, request: web.Request) -> web.Response:
        if "JOB-TOKEN" in request.headers and not self._takes_tokens:
            return web.Response(status=400, text="<Error><Code>InvalidArgument</Code></Error>", content_type="application/xml")
        job_id, number, _ = request.match_info["name"].split("-", 2)
        return _archive(self._jobs[int(job_id)].artifacts[int(number)])


def _format_of(kind: str) -> str:
    return "zip" if kind in ZIP else "gzip" if kind in GZIP else "raw"


def _refused(number: int) -> web.Response:
    return web.json_response({"message": f"400 Bad request - {REFUSALS[number]}"}, status=400)


def _archive(artifact: Artifact) -> web.Response:
    headers = {"Content-Disposition": f'attachment; filename="{quote(artifact.file_name)}"'}
    return web.Response(body=artifact.content, headers=headers)


def _uploaded(request: web.Request, raw: bytes) -> Artifact | None:
    """The file of a form of exactly one part; None where that is not what was sent."""
    boundary = request.headers.get("Content-Type", "").partition("boundary=")[2].strip('"').encode()
    opening, closing = b"--" + boundary + b"\r\n", b"\r\n--" + boundary + b"--"
    if request.content_type != "multipart/form-data" or not raw.startswith(opening) or not raw.rstrip(b"\r\n").endswith(closing):
        return None
    head, _, content = raw[len(opening) : raw.rindex(closing)].partition(b"\r\n\r\n")
    disposition = next((line for line in head.decode().split("\r\n") if line.lower().startswith("content-disposition:")), "")
    if 'name="file"' not in disposition or b"--" + boundary in content:
        return None
    form = {name: request.query[name] for name in FORM if name in request.query}
    return Artifact(form=form, file_name=disposition.partition('filename="')[2].rstrip('"'), content=content)


class Bucket:
    """An S3 bucket that checks no signature: whole objects by key, with their metadata."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self._headers: dict[str, dict[str, str]] = {}

    def put(self, key: str, content: bytes, metadata: dict[str, str]) -> str:
        """Store an object; its ETag."""
        tag = f'"{hashlib.md5(content).hexdigest()}"'
        self.objects[key] = content
        self._headers[key] = {**metadata, "ETag": tag, "Last-Modified": formatdate(usegmt=True)}
        return tag

    async def serve(self, request: web.Request) -> web.Response:
        key = request.match_info["key"]
        if request.method == "PUT":
            kept = {name: value for name, value in request.headers.items() if name.lower().startswith("x-amz-meta-")}
            return web.Response(headers={"ETag": self.put(key, await request.read(), kept)})
        if key not in self.objects:
            return web.Response(status=404, text="<Error><Code>NoSuchKey</Code></Error>", content_type="application/xml")
        if request.method == "DELETE":
            del self.objects[key]
            return web.Response(status=204)
        content, headers = self.objects[key], self._headers[key]
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("Range", ""))
        if asked is None:
            return web.Response(body=content, headers=headers)
        first, last = int(asked[1]), min(int(asked[2]), len(content) - 1)
        headers = {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
        return web.Response(status=206, body=content[first : last + 1], headers=headers)

"""Artifacts on their way to GitLab and back (``runner-api.md`` 9, 10): one try each, what it means, no policy."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable
from urllib.parse import urlencode, urlsplit

from runner.coordinator.http import HttpClient, Transfer
from runner.coordinator.port import ArtifactAnswer, ArtifactUpload, ArtifactVerdict, TransferSettings
from runner.coordinator.response import Response

SHOWN_BODY_BYTES = 512
# The same archive would get the same answer again.
REFUSALS = frozenset({401, 404, 405})


class ArtifactCalls:
    """The calls of one job that move files."""

    def __init__(self, http: HttpClient, job_id: int, job_token: str) -> None:
        self._http = http
        self._job_id = job_id
        self._token = job_token

    async def upload_artifacts(self, upload: ArtifactUpload, settings: TransferSettings) -> ArtifactAnswer:
        """``POST /jobs/:id/artifacts``: one part, chunked, made anew for every request of the call."""
        boundary = secrets.token_hex(30)
        query = {
            "artifact_format": upload.artifact_format,
            "artifact_type": upload.artifact_type,
            "expire_in": upload.expire_in,
        }
        response = await self._http.request(
            "POST",
            f"jobs/{self._job_id}/artifacts",
            query=urlencode({name: value for name, value in query.items() if value}),
            headers={"JOB-TOKEN": self._token},
            body=lambda: _form(boundary, upload),
            content_type=f"multipart/form-data; boundary={boundary}",
            endpoint="upload_artifacts",
            transfer=Transfer(
                attempts=settings.attempts,
                on_wait=settings.on_wait,
                total_timeout_s=settings.total_timeout_s,
                header_timeout_s=settings.header_timeout_s,
            ),
        )
        text = response.failure("POST", response.url) if response.message else response.line
        return ArtifactAnswer(
            verdict=_upload_verdict(response),
            status=response.status,
            text=f"{text} empty location" if response.status == 307 else text,
            message=response.message,
            correlation_id=response.correlation_id,
            headers=response.headers,
            body=response.body[:SHOWN_BODY_BYTES],
        )

    async def download_artifacts(
        self,
        job_id: int,
        token: str,
        *,
        direct: bool,
        sink: Callable[[bytes], None],
        on_store: Callable[[str, int], None],
        settings: TransferSettings,
    ) -> ArtifactAnswer:
        """``GET /jobs/:id/artifacts``. With ``direct`` one request asks where the archive is, and is then repeated so that
        the redirect is followed; the token goes to no other host."""
        query = "direct_download=true" if direct else ""
        whole = Transfer(sink=sink, attempts=settings.attempts, on_wait=settings.on_wait)
        if direct:
            response = await self._get(job_id, token, query, Transfer(sink=sink, attempts=1, redirects=False))
            location = response.headers.get("Location", "")
            if response.status in (302, 307) and location:
                host = (urlsplit(location).netloc or urlsplit(response.url).netloc).rpartition("@")[2]
                on_store(host, response.status)
                response = await self._get(job_id, token, query, whole)
        else:
            response = await self._get(job_id, token, query, whole)
        return ArtifactAnswer(
            verdict=_download_verdict(response),
            status=response.status,
            text=response.failure("GET", response.url) if response.message else response.line,
            correlation_id=response.correlation_id,
        )

    async def _get(self, job_id: int, token: str, query: str, transfer: Transfer) -> Response:
        return await self._http.request(
            "GET",
            f"jobs/{job_id}/artifacts",
            query=query,
            headers={"JOB-TOKEN": token},
            endpoint="download_artifacts",
            transfer=transfer,
        )


async def _form(boundary: str, upload: ArtifactUpload) -> AsyncIterator[bytes]:
    """The multipart body, the archive in its one part."""
    name = upload.file_name.replace("\\", "\\\\").replace('"', '\\"').replace("\r", "%0D").replace("\n", "%0A")
    head = (
        f"--{boundary}\r\n"
        f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n'
        "Content-Type: application/octet-stream\r\n\r\n"
    )
    yield head.encode(errors="surrogateescape")
    async for piece in upload.content():
        yield piece
    yield f"\r\n--{boundary}--\r\n".encode()


def _upload_verdict(response: Response) -> ArtifactVerdict:
    match response.status:
        case 201:
            return ArtifactVerdict.OK
        case 403:
            return ArtifactVerdict.FORBIDDEN
        case 413:
            return ArtifactVerdict.TOO_LARGE
        case 503:
            return ArtifactVerdict.UNAVAILABLE
        # Where a redirect led to says nothing of the archive.
        case status if status in REFUSALS and not response.redirected:
            return ArtifactVerdict.REFUSED
        case status if status < 0:
            return ArtifactVerdict.ERROR
        case _:
            return ArtifactVerdict.FAILED


def _download_verdict(response: Response) -> ArtifactVerdict:
    match response.status:
        case 200:
            return ArtifactVerdict.OK
        case 401:
            return ArtifactVerdict.UNAUTHORIZED
        case 403:
            return ArtifactVerdict.FORBIDDEN
        case 404:
            return ArtifactVerdict.NOT_FOUND
        case status if status < 0:
            return ArtifactVerdict.ERROR
        case _:
            return ArtifactVerdict.FAILED

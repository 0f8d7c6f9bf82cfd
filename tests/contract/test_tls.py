"""TLS: authorities of our own, client certificates, replaced files, and what a job is told of them."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, job_payload
from tests.fakes.daemon import Daemon

CONFIG = """concurrent = 1
check_interval = 1

[[runners]]
  name = "lab"
  url = "{url}"
  token = "glrt-lab"
  executor = "shell"
  builds_dir = "{root}/builds"
  tls-ca-file = "{ca}"
{extra}"""


class Authority:
    """A certificate authority made by openssl."""

    def __init__(self, root: Path, name: str) -> None:
        self.root = root
        self.ca, self._key = root / f"{name}-ca.pem", root / f"{name}-ca.key"
        self._openssl(
            "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", self._key, "-out", self.ca, "-subj", f"/CN={name}"
        )

    def _openssl(self, *arguments: object) -> None:
        subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)

    def issue(self, name: str, extension: str = "subjectAltName=IP:127.0.0.1,DNS:localhost") -> tuple[Path, Path]:
        cert, key, request, about = (self.root / f"{name}.{suffix}" for suffix in ("pem", "key", "csr", "ext"))
        about.write_text(extension + "\n")
        self._openssl("req", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        self._openssl(
            "x509",
            "-req",
            "-in",
            request,
            "-CA",
            self.ca,
            "-CAkey",
            self._key,
            "-CAcreateserial",
            "-out",
            cert,
            "-extfile",
            about,
        )
        return cert, key


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "lab")


def server_context(authority: Authority, *, demand: bool = False) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.issue("server"))
    if demand:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(authority.ca)
    return context


@pytest.fixture
async def secure(tmp_path: Path, authority: Authority) -> AsyncIterator[FakeCoordinator]:
    async with FakeCoordinator(tmp_path / "server", trace_interval=1, context=server_context(authority)) as fake:
        yield fake


async def test_a_private_authority_is_trusted_by_requests_and_git(
    secure: FakeCoordinator, authority: Authority, tmp_path: Path
) -> None:
    commit = git_server.make_repository(secure.repositories, "app", {"README": "hello\n"})
    payload = job_payload(1, ["cat README", "cat $CI_SERVER_TLS_CA_FILE"], variables={"GIT_STRATEGY": "fetch"})
    payload["git_info"] |= secure.git_info(commit)
    payload["variables"].append({"key": "FF_TIMESTAMPS", "value": "false"})
    job = secure.add_job(payload)
    daemon = Daemon(tmp_path / "r", CONFIG.format(url=secure.url, root=tmp_path, ca=authority.ca, extra=""))
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 20)
    await daemon.stop()
    assert job.state == "success", job.log
    assert "hello\n" in job.log
    assert authority.ca.read_text() in job.log


async def test_an_unknown_authority_is_refused_and_a_replaced_file_is_seen(
    secure: FakeCoordinator, authority: Authority, tmp_path: Path
) -> None:
    trusted = tmp_path / "ca.pem"
    trusted.write_text(Authority(tmp_path, "other").ca.read_text())
    job = secure.add_job(job_payload(1, ["true"]))
    daemon = Daemon(tmp_path / "r", CONFIG.format(url=secure.url, root=tmp_path, ca=trusted, extra=""))
    daemon.start()
    async with asyncio.timeout(10):
        while "certificate verify failed" not in daemon.log:
            await asyncio.sleep(0.1)
    assert job.state == "pending"
    trusted.write_text(authority.ca.read_text())
    await asyncio.wait_for(job.ended.wait(), 20)
    await daemon.stop()
    assert job.state == "success"


async def test_a_client_certificate_is_presented(authority: Authority, tmp_path: Path) -> None:
    cert, key = authority.issue("client", "extendedKeyUsage=clientAuth")
    extra = f'  tls-cert-file = "{cert}"\n  tls-key-file = "{key}"\n'
    context = server_context(authority, demand=True)
    async with FakeCoordinator(tmp_path / "server", trace_interval=1, context=context) as fake:
        show = ["cat $CI_SERVER_TLS_CERT_FILE", "stat -c %a $CI_SERVER_TLS_KEY_FILE"]
        job = fake.add_job(job_payload(1, show, variables={"FF_TIMESTAMPS": "false"}))
        daemon = Daemon(tmp_path / "r", CONFIG.format(url=fake.url, root=tmp_path, ca=authority.ca, extra=extra))
        daemon.start()
        await asyncio.wait_for(job.ended.wait(), 20)
        await daemon.stop()
    assert job.state == "success", job.log
    assert cert.read_text() in job.log
    assert "\n600\n" in job.log


async def test_a_missing_ca_file_is_named(secure: FakeCoordinator, tmp_path: Path) -> None:
    daemon = Daemon(tmp_path / "r", CONFIG.format(url=secure.url, root=tmp_path, ca="/no/such/ca.pem", extra=""))
    daemon.start()
    async with asyncio.timeout(10):
        while "cannot use the CA file /no/such/ca.pem" not in daemon.log:
            await asyncio.sleep(0.1)
    await daemon.stop()

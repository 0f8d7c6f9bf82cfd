"""TLS of a runner entry: which files count, when they are read again, and what a job is told of them."""

from __future__ import annotations

import base64
import os
import ssl
from dataclasses import dataclass
from pathlib import Path

import structlog

from runner.errors import CoordinatorError
from runner.urls import server_url

log = structlog.get_logger()

CERTIFICATE_DIRS = (Path("/etc/pyrunner/certs"), Path("/etc/gitlab-runner/certs"))


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsFiles:
    """Paths of PEM files, empty where there is none."""

    ca: str = ""
    cert: str = ""
    key: str = ""

    def stamps(self) -> tuple[int, ...]:
        """Modification times: a change means that the files are read again."""
        return tuple(_mtime_ns(path) for path in (self.ca, self.cert, self.key))


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsData:
    """What a job gets of the connection that brought it, PEM texts."""

    ca_chain: str = ""
    cert: str = ""
    key: str = ""


def find_files(url: str, *, ca: str, cert: str, key: str, config_dir: Path) -> TlsFiles:
    """The configured files, or those of the certificate directories that carry the host's name."""
    try:
        host = server_url(url).hostname or ""
    except CoordinatorError:
        return TlsFiles(ca=ca)  # nothing can be asked there, and whoever tries is told why
    directories = (config_dir / "certs", *CERTIFICATE_DIRS)
    found = TlsFiles(
        ca=ca or _first(directories, f"{host}.crt"),
        cert=cert or _first(directories, f"{host}.auth.crt"),
        key=key or _first(directories, f"{host}.auth.key"),
    )
    # A certificate without its key, or the other way round, is not used (``runner-api.md`` 1.5).
    return found if found.cert and found.key else TlsFiles(ca=found.ca)


def make_context(files: TlsFiles) -> ssl.SSLContext:
    """A context that verifies servers. Raises :class:`CoordinatorError`, which names the file that cannot be used."""
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if files.ca:
        try:
            context.load_verify_locations(cafile=files.ca)
        except (OSError, ssl.SSLError) as error:
            raise CoordinatorError(f"cannot use the CA file {files.ca}: {error.strerror or error}") from error
    if files.cert:
        try:
            context.load_cert_chain(files.cert, files.key)
        except (OSError, ssl.SSLError) as error:
            log.error("client certificate cannot be used", cert=files.cert, key=files.key, error=str(error))
    return context


def job_data(files: TlsFiles, connection: ssl.SSLObject | ssl.SSLSocket | None) -> TlsData:
    """CA chain and client certificate for the variables ``CI_SERVER_TLS_*`` (``runner-api.md`` 1.6)."""
    chain = _read(files.ca) if files.ca else _verified_chain(connection)
    return TlsData(ca_chain=chain, cert=_read(files.cert), key=_read(files.key))


def _verified_chain(connection: ssl.SSLObject | ssl.SSLSocket | None) -> str:
    # The public API of Python 3.11 gives the peer's certificate only; the object behind it knows the chain.
    inner = getattr(connection, "_sslobj", None)
    get_chain = getattr(inner, "get_verified_chain", None)
    if get_chain is not None:
        return "".join(_pem(certificate.public_bytes(2)) for certificate in get_chain() or ())
    peer = connection.getpeercert(binary_form=True) if connection is not None else None
    return _pem(peer) if peer else ""


def _pem(der: bytes) -> str:
    text = base64.encodebytes(der).decode().replace("\n", "")
    lines = [text[start : start + 64] for start in range(0, len(text), 64)]
    return "\n".join(["-----BEGIN CERTIFICATE-----", *lines, "-----END CERTIFICATE-----", ""])


def _first(directories: tuple[Path, ...], name: str) -> str:
    return next((str(path) for directory in directories if (path := directory / name).is_file()), "")


def _read(path: str) -> str:
    try:
        return Path(path).read_text() if path else ""
    except OSError:
        return ""


def _mtime_ns(path: str) -> int:
    try:
        return os.stat(path).st_mtime_ns if path else 0  # noqa: PTH116 - a stamp, not a path operation
    except OSError:
        return 0

"""Where an engine listens and how it is trusted (``docker-executor.md`` 1.1)."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from executors.errors import PrepareError

DEFAULT_HOST = "unix:///var/run/docker.sock"
CERTIFICATES = ("ca.pem", "cert.pem", "key.pem")


@dataclass(frozen=True, slots=True, kw_only=True)
class Connection:
    """An engine's address.

    ``host`` is ``unix:///path``, ``tcp://host:port`` or ``http(s)://host:port``. ``certificates`` is the folder with
    ``ca.pem``, ``cert.pem`` and ``key.pem`` when the engine is to be verified, None for a plain connection.
    ``api_version`` pins the version of the API; empty means the newest that both sides know.
    """

    host: str = DEFAULT_HOST
    certificates: Path | None = None
    api_version: str = ""

    @classmethod
    def resolve(cls, host: str, *, tls_verify: bool, tls_cert_path: str, environ: Mapping[str, str]) -> Connection:
        """The connection that configuration and environment ask for.

        Without a configured host the environment decides over all three settings.
        """
        if not host and environ.get("DOCKER_HOST"):
            host = environ["DOCKER_HOST"]
            tls_cert_path = environ.get("DOCKER_CERT_PATH", "")
            tls_verify = environ.get("DOCKER_TLS_VERIFY", "") != ""
        home = environ.get("HOME", "/")
        return cls(
            host=host or DEFAULT_HOST,
            certificates=Path(tls_cert_path or f"{home}/.docker") if tls_verify else None,
            api_version=environ.get("DOCKER_API_VERSION", ""),
        )

    @property
    def socket_path(self) -> str | None:
        """The path of a local engine's socket."""
        scheme, _, path = self.host.partition("://")
        return path if scheme == "unix" else None

    @property
    def base_url(self) -> str:
        """The address as HTTP clients know it. Raises :class:`PrepareError` for a scheme that nothing here speaks."""
        if self.socket_path is not None:
            return "http://docker"
        scheme, _, rest = self.host.partition("://")
        if scheme not in ("tcp", "http", "https") or not rest:
            text = "only unix://, tcp:// and http(s):// are supported"
            raise PrepareError(f"failed to connect to the docker API at {self.host}: {text}")
        secure = self.certificates is not None or scheme == "https"
        return f"{'https' if secure else 'http'}://{rest.rstrip('/')}"

    def ssl_context(self) -> ssl.SSLContext | None:
        """How the engine is verified: by the folder's ``ca.pem`` alone. Raises :class:`PrepareError`, which names the file
        that cannot be used."""
        if self.certificates is None:
            return None
        folder = self.certificates
        try:
            for name in CERTIFICATES:
                (folder / name).open("rb").close()
            context = ssl.create_default_context(cafile=str(folder / "ca.pem"))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
        except OSError as error:
            raise PrepareError(f"the TLS files of the Docker engine in {folder} cannot be used: {error}") from error
        return context

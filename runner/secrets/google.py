"""Google Cloud Secret Manager, by workload identity federation: the job's token becomes one of Google's."""

from __future__ import annotations

import base64
import binascii
from urllib.parse import quote

import msgspec

from runner.errors import ProviderFailed, SecretError, SecretMissing, SecretRefused
from runner.secrets.fields import Part, said
from runner.secrets.http import Answer, SecretsHttp

TOKENS = "https://sts.googleapis.com/v1/token"
SECRETS = "https://secretmanager.googleapis.com/v1"
SCOPE = "https://www.googleapis.com/auth/cloud-platform"
REFUSED = ("PERMISSION_DENIED", "NOT_FOUND")
DOWN = ("UNAVAILABLE", "INTERNAL")
CASTAGNOLI = 0x82F63B78


class Server(Part, frozen=True, kw_only=True):
    """The project, and the pool and provider that trust the job's token."""

    project_number: str = ""
    workload_identity_federation_pool_id: str = ""
    workload_identity_federation_provider_id: str = ""
    jwt: str = ""


class GoogleSecret(Part, frozen=True, kw_only=True):
    """A version of a secret; without one the latest."""

    name: str = ""
    version: str = ""
    server: Server = Server()


class _Payload(Part, frozen=True, kw_only=True):
    data: str = ""
    dataCrc32c: str | int | None = None


async def resolve_google(http: SecretsHttp, secret: GoogleSecret, *, tokens: str = TOKENS, secrets: str = SECRETS) -> str:
    """Exchange the token, read the version. Raises :class:`SecretError`. ``tokens`` and ``secrets`` are Google's places."""
    server = secret.server
    audience = (
        f"//iam.googleapis.com/projects/{server.project_number}/locations/global/workloadIdentityPools/"
        f"{server.workload_identity_federation_pool_id}/providers/{server.workload_identity_federation_provider_id}"
    )
    exchange = {
        "audience": audience,
        "grantType": "urn:ietf:params:oauth:grant-type:token-exchange",
        "requestedTokenType": "urn:ietf:params:oauth:token-type:access_token",
        "scope": SCOPE,
        "subjectToken": server.jwt,
        "subjectTokenType": "urn:ietf:params:oauth:token-type:id_token",
    }
    try:
        answer = await http.request("POST", tokens, json=exchange)
        text = said(answer.body, "error_description") or said(answer.body, "error", "message")
        fields = answer.checked(text, refusals=frozenset()).json()
        token = msgspec.json.decode(fields["access_token"], type=str)
    except (KeyError, msgspec.DecodeError) as error:
        raise SecretError("failed to exchange sts token: the answer holds no token") from error
    except SecretError as error:
        raise error.within("failed to exchange sts token") from error
    parts = ("projects", server.project_number, "secrets", secret.name, "versions", secret.version or "latest")
    url = f"{secrets}/{'/'.join(quote(part, safe='') for part in parts)}:access"
    try:
        answer = _classified(await http.request("GET", url, headers={"Authorization": f"Bearer {token}"}))
        return _content(answer)
    except SecretMissing:
        raise
    except SecretError as error:
        raise error.within("failed to get secret") from error


def _classified(answer: Answer) -> Answer:
    """Google's own words for what is wrong count, not the status."""
    if answer.status < 300:
        return answer
    code, text = said(answer.body, "error", "status"), said(answer.body, "error", "message")
    message = f"api error: status code {answer.status}: {code or 'unknown'}: {text[:500]}"
    if code in REFUSED:
        raise SecretRefused(message)
    raise ProviderFailed(message) if code in DOWN or answer.status >= 500 else SecretError(message)


def _content(answer: Answer) -> str:
    found = answer.json().get("payload")
    if found is None or bytes(found) == b"null":
        raise SecretMissing
    try:
        payload = msgspec.json.decode(found, type=_Payload)
        data = base64.b64decode(payload.data, validate=True)
    except (msgspec.DecodeError, binascii.Error) as error:
        raise SecretError(f"{answer.place}: the answer cannot be decoded") from error
    if payload.dataCrc32c is not None and str(crc32c(data)) != str(payload.dataCrc32c):
        raise SecretError("data corruption detected")
    return data.decode(errors="surrogateescape")


def crc32c(data: bytes) -> int:
    """The checksum by which Google guards secrets (CRC-32 of Castagnoli)."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (CASTAGNOLI if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF

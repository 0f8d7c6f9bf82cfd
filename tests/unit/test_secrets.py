"""Providers of secrets whose places no job and no environment can name, and what their answers mean."""

from __future__ import annotations

import base64

import pytest

from runner.errors import SecretError, SecretMissing, SecretRefused
from runner.secrets.google import GoogleSecret, Server, crc32c, resolve_google
from runner.secrets.http import SecretsHttp
from tests.fakes.providers import JWT, Providers

SECRET = GoogleSecret(
    name="db",
    server=Server(
        project_number="42",
        workload_identity_federation_pool_id="pool",
        workload_identity_federation_provider_id="gitlab",
        jwt=JWT,
    ),
)
PLACE = "projects/42/secrets/db/versions/latest"


async def resolve(providers: Providers) -> str:
    async with SecretsHttp({}) as http:
        return await resolve_google(http, SECRET, tokens=f"{providers.url}/google/token", secrets=f"{providers.url}/google")


def test_the_checksum_is_that_of_castagnoli() -> None:
    assert crc32c(b"123456789") == 0xE3069283


async def test_google_secret_manager() -> None:
    data = b"a value\n"
    async with Providers() as providers:
        providers.stored[PLACE] = {"data": base64.b64encode(data).decode(), "dataCrc32c": str(crc32c(data))}
        assert await resolve(providers) == "a value\n"
        assert providers.refused == []


@pytest.mark.parametrize(
    ("stored", "kind", "text"),
    [
        pytest.param(
            None,
            SecretRefused,
            "failed to get secret: api error: status code 404: NOT_FOUND: Secret [projects/42/secrets/db/versions/latest] not",
            id="no-version",
        ),
        pytest.param({"data": "YQ==", "dataCrc32c": "1"}, SecretError, "data corruption detected", id="corrupt"),
        pytest.param({"data": "?"}, SecretError, "the answer cannot be decoded", id="not-base64"),
    ],
)
async def test_google_that_cannot_give_it(stored: dict[str, str] | None, kind: type[SecretError], text: str) -> None:
    async with Providers() as providers:
        if stored is not None:
            providers.stored[PLACE] = stored
        with pytest.raises(kind, match=text.replace("[", r"\[").replace("]", r"\]")):
            await resolve(providers)


def test_a_missing_secret_says_so() -> None:
    assert str(SecretMissing()) == "secret not found"

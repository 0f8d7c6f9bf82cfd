"""Which provider a secret is of, and how it is asked (``runner-api.md`` 4.10)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from runner.secrets.amazon import AmazonSecret, resolve_amazon
from runner.secrets.azure import AzureSecret, resolve_azure
from runner.secrets.fields import described
from runner.secrets.google import GoogleSecret, resolve_google
from runner.secrets.http import SecretsHttp
from runner.secrets.vault import ManagerSecret, VaultSecret, resolve_manager, resolve_vault

Expand = Callable[[str], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """``name`` is what the log calls it; ``resolve`` gets the description as the job has it."""

    name: str
    resolve: Callable[[SecretsHttp, Any, Expand], Awaitable[str]]


async def _vault(http: SecretsHttp, description: Any, expand: Expand) -> str:
    return await resolve_vault(http, described(description, VaultSecret, expand))


async def _google(http: SecretsHttp, description: Any, expand: Expand) -> str:
    return await resolve_google(http, described(description, GoogleSecret, expand))


async def _azure(http: SecretsHttp, description: Any, expand: Expand) -> str:
    return await resolve_azure(http, described(description, AzureSecret, expand))


async def _amazon(http: SecretsHttp, description: Any, expand: Expand) -> str:
    return await resolve_amazon(http, described(description, AmazonSecret, expand))


async def _manager(http: SecretsHttp, description: Any, _: Expand) -> str:
    return await resolve_manager(http, described(description, ManagerSecret, lambda text: text))


# In the order in which they are looked for.
PROVIDERS: Mapping[str, Provider] = {
    "vault": Provider(name="vault", resolve=_vault),
    "gcp_secret_manager": Provider(name="gcp_secret_manager", resolve=_google),
    "azure_key_vault": Provider(name="azure-key-vault", resolve=_azure),
    "aws_secrets_manager": Provider(name="aws_secrets_manager", resolve=_amazon),
    "gitlab_secrets_manager": Provider(name="gitlab_secrets_manager", resolve=_manager),
}


def provider_of(secret: Mapping[str, Any]) -> tuple[Provider, Any] | None:
    """The provider of a secret and what the job says to it; None where no provider is known."""
    found = (key for key in PROVIDERS if key in secret)
    key = next(found, None)
    return None if key is None else (PROVIDERS[key], secret[key])

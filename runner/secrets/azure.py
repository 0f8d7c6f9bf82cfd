"""Azure Key Vault, by a federated credential: the job's token stands for the application's password."""

from __future__ import annotations

from urllib.parse import quote, urlsplit

import msgspec

from runner.errors import SecretError, SecretMissing, SecretRefused
from runner.secrets.fields import Part, said, text_of
from runner.secrets.http import SecretsHttp

AUTHORITY = "https://login.microsoftonline.com"
API_VERSION = "7.4"
# Vaults of sovereign clouds have audiences of their own: the domain of the vault.
CLOUDS = ("vault.azure.net", "vault.azure.cn", "vault.usgovcloudapi.net", "managedhsm.azure.net")
REFUSALS = frozenset({403, 404})


class Server(Part, frozen=True, kw_only=True):
    """The vault, and the application that may read it."""

    client_id: str = ""
    tenant_id: str = ""
    jwt: str = ""
    url: str = ""


class AzureSecret(Part, frozen=True, kw_only=True):
    """A version of a secret; without one the newest."""

    name: str = ""
    version: str = ""
    server: Server = Server()


async def resolve_azure(http: SecretsHttp, secret: AzureSecret) -> str:
    """Log in as the application, read the version. Raises :class:`SecretError`.

    ``AZURE_AUTHORITY_HOST`` of the daemon's environment names another place to log in, as for all programs for Azure.
    """
    server = secret.server
    if not server.tenant_id or not server.client_id:
        raise SecretRefused("getting credential failed: the server has no tenant_id or no client_id")
    authority = http.environment.get("AZURE_AUTHORITY_HOST") or AUTHORITY
    form = {
        "client_assertion": server.jwt,
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_id": server.client_id,
        "grant_type": "client_credentials",
        "scope": f"https://{_audience(server.url)}/.default",
    }
    try:
        login = f"{authority.rstrip('/')}/{quote(server.tenant_id, safe='')}/oauth2/v2.0/token"
        answer = await http.request("POST", login, form=form)
        fields = answer.checked(said(answer.body, "error_description"), refusals=frozenset()).json()
        token = msgspec.json.decode(fields["access_token"], type=str)
    except (KeyError, msgspec.DecodeError) as error:
        raise SecretError("getting credential failed: the answer to the login holds no token") from error
    except SecretError as error:
        raise error.within("getting credential failed") from error
    parts = "/".join(quote(part, safe="") for part in ("secrets", secret.name, secret.version) if part)
    url = f"{server.url.rstrip('/')}/{parts}?api-version={API_VERSION}"
    try:
        answer = await http.request("GET", url, headers={"Authorization": f"Bearer {token}"})
        fields = answer.checked(said(answer.body, "error", "message"), refusals=REFUSALS).json()
    except SecretError as error:
        raise error.within("getting secret failed") from error
    if "value" not in fields:
        raise SecretMissing
    return text_of(fields["value"])


def _audience(url: str) -> str:
    host = (urlsplit(url).hostname or "").lower()
    return next((cloud for cloud in CLOUDS if host.endswith(f".{cloud}")), CLOUDS[0])

"""AWS Secrets Manager: the job's token becomes credentials of a role, which sign the request for the secret."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

import msgspec

from runner.errors import ProviderFailed, SecretError, SecretRefused
from runner.secrets.fields import Part, said
from runner.secrets.http import Answer, SecretsHttp

SERVICE = "secretsmanager"
TARGET = "secretsmanager.GetSecretValue"
CONTENT_TYPE = "application/x-amz-json-1.1"
SESSION = "pyrunner"
REFUSED = ("ResourceNotFoundException", "AccessDeniedException")


class Server(Part, frozen=True, kw_only=True):
    """What the whole project uses, where the secret itself says nothing else."""

    region: str = ""
    jwt: str = ""
    role_arn: str = ""
    role_session_name: str = ""


class AmazonSecret(Part, frozen=True, kw_only=True):
    """A secret, or a field of it where its text is a JSON object."""

    secret_id: str = ""
    version_id: str = ""
    version_stage: str = ""
    field: str = ""
    region: str = ""
    role_arn: str = ""
    role_session_name: str = ""
    server: Server = Server()


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What signs requests."""

    key_id: str
    key: str
    session_token: str = ""


async def resolve_amazon(http: SecretsHttp, secret: AmazonSecret) -> str:
    """Take on the role, read the secret. Raises :class:`SecretError`.

    Without a role the ``AWS_*`` variables of the daemon's environment are the credentials. ``AWS_ENDPOINT_URL`` and its
    variants for one service name other places, as for all programs for AWS.
    """
    region = secret.region or secret.server.region
    role = secret.role_arn or secret.server.role_arn
    if not region:
        raise SecretRefused("no region: neither the secret nor its server names one")
    if role:
        session = secret.role_session_name or secret.server.role_session_name or SESSION
        credentials = await _assume(http, region, role, session, secret.server.jwt)
    elif secret.server.jwt:
        raise SecretRefused("Role ARN is required when using JWT for AWS authentication")
    else:
        credentials = _own(http.environment)
    wanted = {"SecretId": secret.secret_id, "VersionId": secret.version_id, "VersionStage": secret.version_stage}
    body = msgspec.json.encode({key: value for key, value in wanted.items() if value})
    url = _endpoint(http.environment, "SECRETS_MANAGER", f"https://{SERVICE}.{region}.amazonaws.com") + "/"
    headers = {"Content-Type": CONTENT_TYPE, "X-Amz-Target": TARGET}
    signed = sign(url, headers, body, credentials, region=region, service=SERVICE, now_s=time.time())
    answer = _classified(await http.request("POST", url, headers=signed, body=body))
    found = answer.json().get("SecretString")
    if found is None:
        raise SecretRefused(f"the secret '{secret.secret_id}' is no text")
    text = msgspec.json.decode(found, type=str)
    return _field(text, secret.field, secret.secret_id) if secret.field else text


async def _assume(http: SecretsHttp, region: str, role: str, session: str, jwt: str) -> Credentials:
    form = {
        "Action": "AssumeRoleWithWebIdentity",
        "RoleArn": role,
        "RoleSessionName": session,
        "Version": "2011-06-15",
        "WebIdentityToken": jwt,
    }
    url = _endpoint(http.environment, "STS", f"https://sts.{region}.amazonaws.com") + "/"
    try:
        answer = await http.request("POST", url, form=form)
        text = answer.body.decode(errors="replace")
        answer.checked(f"{_tag(text, 'Code')}: {_tag(text, 'Message')}", refusals=frozenset())
    except SecretError as error:
        raise error.within(f"assuming the role {role}") from error
    found = Credentials(
        key_id=_tag(text, "AccessKeyId"), key=_tag(text, "SecretAccessKey"), session_token=_tag(text, "SessionToken")
    )
    if not found.key_id or not found.key:
        raise SecretError(f"assuming the role {role}: the answer holds no credentials")
    return found


def _own(environment: Mapping[str, str]) -> Credentials:
    found = Credentials(
        key_id=environment.get("AWS_ACCESS_KEY_ID", ""),
        key=environment.get("AWS_SECRET_ACCESS_KEY", ""),
        session_token=environment.get("AWS_SESSION_TOKEN", ""),
    )
    if not found.key_id or not found.key:
        raise SecretRefused("no credentials: the secret names no role_arn, and the runner has no AWS_ACCESS_KEY_ID")
    return found


def _classified(answer: Answer) -> Answer:
    if answer.status < 300:
        return answer
    code = said(answer.body, "__type").rpartition("#")[2]
    text = said(answer.body, "message") or said(answer.body, "Message")
    message = f"api error: status code {answer.status}: {code or 'unknown'}: {text[:500]}"
    if code in REFUSED:
        raise SecretRefused(message)
    raise ProviderFailed(message) if answer.status >= 500 else SecretError(message)


def _field(text: str, field: str, secret_id: str) -> str:
    try:
        fields = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except msgspec.DecodeError as error:
        raise SecretError(f"failed to parse JSON for secret '{secret_id}'") from error
    if field not in fields:
        raise SecretError(f"key '{field}' not found in AWS Secrets Manager response for secret '{secret_id}'")
    value = msgspec.json.decode(fields[field])
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return bytes(fields[field]).decode()
    raise SecretError(
        f"key '{field}' in aws secrets manager response for secret '{secret_id}' is not a string, number or boolean"
    )


def sign(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    credentials: Credentials,
    *,
    region: str,
    service: str,
    now_s: float,
) -> dict[str, str]:
    """The headers of a POST with the signature of AWS (version 4) among them. ``now_s`` is Unix time."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    parts = urlsplit(url)
    sent = {**headers, "Host": parts.netloc, "X-Amz-Date": moment}
    if credentials.session_token:
        sent["X-Amz-Security-Token"] = credentials.session_token
    lines = sorted((name.lower(), " ".join(value.split())) for name, value in sent.items())
    names = ";".join(name for name, _ in lines)
    canonical = "\n".join(
        ["POST", parts.path or "/", parts.query, *(f"{name}:{value}" for name, value in lines), "", names, _digest(body)]
    )
    scope = f"{moment[:8]}/{region}/{service}/aws4_request"
    text = "\n".join(["AWS4-HMAC-SHA256", moment, scope, _digest(canonical.encode())])
    key = f"AWS4{credentials.key}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    signature = hmac.new(key, text.encode(), hashlib.sha256).hexdigest()
    value = f"AWS4-HMAC-SHA256 Credential={credentials.key_id}/{scope}, SignedHeaders={names}, Signature={signature}"
    return {**sent, "Authorization": value}


def _endpoint(environment: Mapping[str, str], service: str, usual: str) -> str:
    own = environment.get(f"AWS_ENDPOINT_URL_{service}") or environment.get("AWS_ENDPOINT_URL") or usual
    return own.rstrip("/")


def _tag(text: str, name: str) -> str:
    """The text of an element. Not parsed as XML: a stranger's document is not worth the risk."""
    found = re.search(rf"<{name}>\s*([^<]*?)\s*</{name}>", text)
    return found.group(1) if found else ""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

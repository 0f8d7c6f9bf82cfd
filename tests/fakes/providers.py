"""Providers of secrets over real HTTP, which answer only requests that are right to the last header."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from aiohttp import web
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

JWT = "eyJhbGciOiJSUzI1NiJ9.c2VjcmV0LXByb29m.c2ln"
ROLE = "arn:aws:iam::123456789012:role/ci"
KEY_ID, KEY, SESSION_TOKEN = "ASIAKEYID", "secret/key+of", "session//token=="
TIME = "X-Amz-Date"


@dataclass
class Providers:
    """``stored`` maps places inside of providers to what they hold, ``troubles`` how often the next requests fail with a
    status. ``refused`` says what was wrong with requests; ``calls`` is every request, as method and path. While it is not
    ``opened`` no request is answered."""

    stored: dict[str, Any] = field(default_factory=dict)
    troubles: list[int] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    namespace: str = ""
    url: str = ""
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Providers:
        self.opened.set()
        app = web.Application(middlewares=[self._middleware])
        app.router.add_put("/v1/auth/{path:.+}/login", self._vault_login)
        app.router.add_get("/v1/{path:.+}", self._vault_read)
        app.router.add_post("/{tenant}/oauth2/v2.0/token", self._azure_login)
        app.router.add_get("/secrets/{name}", self._azure_read)
        app.router.add_get("/secrets/{name}/{version}", self._azure_read)
        app.router.add_post("/google/token", self._google_login)
        app.router.add_get("/google/{path:projects/.+}:access", self._google_read)
        app.router.add_post("/sts/", self._amazon_login)
        app.router.add_post("/aws/", self._amazon_read)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.url = f"http://{host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.calls.append(f"{request.method} {request.path}")
        await self.opened.wait()
        if self.troubles:
            status = self.troubles.pop(0)
            return web.json_response({"errors": ["the vault is sealed"]}, status=status)
        try:
            answer: web.StreamResponse = await handler(request)
        except AssertionError as error:
            self.refused.append(f"{request.method} {request.path}: {error}")
            return web.json_response({"errors": ["bad request"], "error": {"message": "bad request"}}, status=400)
        return answer

    # Vault

    def _check_vault(self, request: web.Request) -> None:
        assert request.headers.get("X-Vault-Request") == "true", "no X-Vault-Request"
        assert request.headers.get("X-Vault-Namespace", "") == self.namespace, "namespace"

    async def _vault_login(self, request: web.Request) -> web.Response:
        self._check_vault(request)
        assert request.content_type == "application/json", request.content_type
        assert "X-Vault-Token" not in request.headers, "a token before the login"
        body = await request.json()
        assert body.keys() <= {"jwt", "role"}, f"unknown fields {sorted(body)}"
        if body["jwt"] != JWT or body.get("role") != "ci":
            return web.json_response({"errors": [f'role "{body.get("role")}" could not be found']}, status=400)
        return web.json_response({"auth": {"client_token": f"hvs.{request.match_info['path']}", "lease_duration": 60}})

    async def _vault_read(self, request: web.Request) -> web.Response:
        self._check_vault(request)
        inline = request.headers.get("X-Vault-Inline-Auth-Path")
        if inline is None:
            assert request.headers.get("X-Vault-Token", "").startswith("hvs."), "no token"
        else:
            assert "X-Vault-Token" not in request.headers, "two logins"
            assert inline == "auth/gitlab/login", inline
            assert _inline(request, "jwt") == JWT, "jwt"
            assert _inline(request, "role") == "ci", "role"
        path = request.match_info["path"]
        if path in self.stored:
            return web.json_response({"data": self.stored[path]})
        if path.startswith("forbidden"):
            return web.json_response({"errors": ["1 error occurred:\n\t* permission denied\n\n"]}, status=403)
        return web.json_response({"errors": []}, status=404)

    # Azure

    async def _azure_login(self, request: web.Request) -> web.Response:
        form = _form(await request.text())
        assert request.match_info["tenant"] == "tenant", "tenant"
        assert form == {
            "client_assertion": JWT,
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
            "client_id": "client",
            "grant_type": "client_credentials",
            "scope": "https://vault.azure.net/.default",
        }, str(sorted(form))
        return web.json_response({"token_type": "Bearer", "expires_in": 3599, "access_token": "azure-token"})

    async def _azure_read(self, request: web.Request) -> web.Response:
        assert request.headers.get("Authorization") == "Bearer azure-token", "no token"
        assert request.query_string.startswith("api-version=7."), request.query_string
        place = "/".join(request.match_info.values())
        if place not in self.stored:
            text = f"A secret with (name/id) {place} was not found in this key vault"
            return web.json_response({"error": {"code": "SecretNotFound", "message": text}}, status=404)
        return web.json_response({"value": self.stored[place], "id": f"{self.url}/secrets/{place}"})

    # Google

    async def _google_login(self, request: web.Request) -> web.Response:
        assert "Authorization" not in request.headers, "the exchange takes no login"
        assert await request.json() == {
            "audience": "//iam.googleapis.com/projects/42/locations/global/workloadIdentityPools/pool/providers/gitlab",
            "grantType": "urn:ietf:params:oauth:grant-type:token-exchange",
            "requestedTokenType": "urn:ietf:params:oauth:token-type:access_token",
            "scope": "https://www.googleapis.com/auth/cloud-platform",
            "subjectToken": JWT,
            "subjectTokenType": "urn:ietf:params:oauth:token-type:id_token",
        }
        return web.json_response({"access_token": "google-token", "token_type": "Bearer", "expires_in": 3599})

    async def _google_read(self, request: web.Request) -> web.Response:
        assert request.headers.get("Authorization") == "Bearer google-token", "no token"
        path = request.match_info["path"]
        if path not in self.stored:
            error = {"code": 404, "status": "NOT_FOUND", "message": f"Secret [{path}] not found or has no versions."}
            return web.json_response({"error": error}, status=404)
        return web.json_response({"name": path, "payload": self.stored[path]})

    # AWS

    async def _amazon_login(self, request: web.Request) -> web.Response:
        form = _form(await request.text())
        if form.get("WebIdentityToken") != JWT:
            text = "<ErrorResponse><Error><Code>InvalidIdentityToken</Code><Message>bad token</Message></Error></ErrorResponse>"
            return web.Response(status=400, text=text, content_type="text/xml")
        assert form == {
            "Action": "AssumeRoleWithWebIdentity",
            "RoleArn": ROLE,
            "RoleSessionName": "session",
            "Version": "2011-06-15",
            "WebIdentityToken": JWT,
        }, str(sorted(form))
        inner = f"<AccessKeyId>{KEY_ID}</AccessKeyId><SecretAccessKey>{KEY}</SecretAccessKey>"
        text = f"<R><Credentials>{inner}<SessionToken>{SESSION_TOKEN}</SessionToken></Credentials></R>"
        return web.Response(text=text, content_type="text/xml")

    async def _amazon_read(self, request: web.Request) -> web.Response:
        body = await request.read()
        assert request.headers["Authorization"] == _signature(request, body), "the signature is wrong"
        assert request.headers["X-Amz-Target"] == "secretsmanager.GetSecretValue", "target"
        place = json.dumps(json.loads(body), sort_keys=True)
        if place not in self.stored:
            error = {"__type": "ResourceNotFoundException", "Message": "Secrets Manager can't find the specified secret."}
            return web.json_response(error, status=400, content_type="application/x-amz-json-1.1")
        return web.json_response({"SecretString": self.stored[place]}, content_type="application/x-amz-json-1.1")


def _signature(request: web.Request, body: bytes) -> str:
    """What AWS's own program would have sent at the time that the request names."""
    sent = request.headers
    signed = {name: sent[name] for name in ("Content-Type", "Host", "X-Amz-Target")}
    known = AWSRequest("POST", f"http://{sent['Host']}{request.path}", headers=signed, data=body)
    known.context["timestamp"] = sent[TIME]
    known.headers[TIME] = sent[TIME]
    known.headers["X-Amz-Security-Token"] = sent["X-Amz-Security-Token"]
    signer = SigV4Auth(Credentials(KEY_ID, KEY, SESSION_TOKEN), "secretsmanager", "eu-west-3")
    signer._inject_signature_to_request(
        known, signer.signature(signer.string_to_sign(known, signer.canonical_request(known)), known)
    )
    return str(known.headers["Authorization"])


def _inline(request: web.Request, key: str) -> Any:
    """A parameter of a login inside of a request, whichever header brings it."""
    for name, value in request.headers.items():
        if name.startswith("X-Vault-Inline-Auth-Parameter-"):
            found = json.loads(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4)))
            if found["key"] == key:
                return found["value"]
    return None


def _form(text: str) -> dict[str, str]:
    return {key: values[0] for key, values in parse_qs(text, strict_parsing=True).items()}

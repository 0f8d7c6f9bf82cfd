"""The runner-level half of GitLab for command tests: register, verify, delete, reset."""

from __future__ import annotations

import json
from typing import Any

from aiohttp import web

from tests.fakes.faults import Faults, cut, scripted


class RunnerApi:
    """``async with RunnerApi() as api``: knows ``glrt-…`` and ``legacy-…`` tokens, refuses any with ``bad`` in it."""

    def __init__(self, server: dict[str, Any]) -> None:
        self._server = server
        self.faults = Faults(
            [[fault["match"], fault["kind"], fault.get("count", 1), fault] for fault in server.get("faults") or []]
        )
        self.requests: list[dict[str, Any]] = []
        self._created = 0
        self._site: web.AppRunner | None = None
        self.url = ""
        self.host = ""

    async def __aenter__(self) -> RunnerApi:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._serve)
        self._site = web.AppRunner(app, access_log=None)
        await self._site.setup()
        await web.TCPSite(self._site, "127.0.0.1", 0).start()
        self.host = f"127.0.0.1:{self._site.addresses[0][1]}"
        self.url = f"http://{self.host}"
        if self._server.get("down"):
            await self._site.cleanup()
            self._site = None
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._site is not None:
            await self._site.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        raw = await request.read()
        body = json.loads(raw) if raw else None
        recorded = {"method": request.method, "path": request.path, "body": body, "status": None}
        self.requests.append(recorded)
        fault = self.faults.find(f"{request.method} {request.path}", raw.decode())
        if fault is not None and fault.kind == "status":
            response: web.StreamResponse = scripted(fault, request, {"URL": self.url})
        elif fault is not None:
            return await cut(request)
        else:
            response = self._answer(request, body if isinstance(body, dict) else {})
        recorded["status"] = response.status
        return response

    def _answer(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        path = request.path.removeprefix("/api/v4/")
        token = str(body.get("token") or request.headers.get("PRIVATE-TOKEN", ""))
        known = token == "reg-token" or token.startswith(("glrt-", "legacy-", "glpat-"))
        if not known or "bad" in token:
            return web.json_response({"message": "403 Forbidden"}, status=403)
        match request.method, path:
            case "POST", "runners":
                if token != "reg-token":
                    return web.json_response({"message": "403 Forbidden"}, status=403)
                self._created += 1
                made = {"id": self._created, "token": f"legacy-token-{self._created:07d}", "token_expires_at": None}
                return web.json_response(made, status=201)
            case "POST", "runners/verify":
                expires = self._server.get("verify_expires")
                shown = self._server.get("verify_id", 7)
                return web.json_response({"id": shown, "token": token, "token_expires_at": expires})
            case "DELETE", "runners" | "runners/managers":
                return web.Response(status=204)
            case "POST", _ if path.endswith("reset_authentication_token"):
                self._created += 1
                fresh = f"glrt-new-token-{self._created:04d}"
                expires = self._server.get("reset_expires")
                return web.json_response({"token": fresh, "token_expires_at": expires}, status=201)
            case _:
                return web.json_response({"error": "404 Not Found"}, status=404)

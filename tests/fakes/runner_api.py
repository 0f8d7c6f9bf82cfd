"""The runner-level half of GitLab for command tests: register, verify, delete, reset."""

from __future__ import annotations

import json
import time
from typing import Any

from aiohttp import web

from tests.fakes.faults import Faults, cut, scripted


class RunnerApi:
    """``async with RunnerApi() as api``: knows ``glrt-…`` and ``legacy-…`` tokens, refuses any with ``bad`` in it."""

    def __init__(self, server: dict[str, Any]) -> None:
        self._server = server
        self.faults = Faults(server.get("faults"))
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
        token = body.get("token") or request.headers.get("PRIVATE-TOKEN", "")
        if not token:
            return web.json_response({"error": "token is missing"}, status=400)
        if "bad" in token:
            return web.json_response({"message": "403 Forbidden"}, status=403)
        expiry = self._expiry()
        match request.method, path:
            case "POST", "runners":
                if token != "reg-token":
                    return web.json_response({"message": "403 Forbidden"}, status=403)
                self._created += 1
                made = {"id": self._created, "token": f"legacy-token-{self._created:07d}", "token_expires_at": expiry}
                return web.json_response(made, status=201)
            case "POST", "runners/verify":
                return web.json_response({"id": 7, "token": token, "token_expires_at": expiry})
            case "DELETE", "runners" | "runners/managers":
                return web.Response(status=204)
            case "POST", _ if path.endswith("reset_authentication_token"):
                self._created += 1
                fresh = f"glrt-reset{self._created:015d}"
                return web.json_response({"token": fresh, "token_expires_at": expiry}, status=201)
        return web.json_response({"error": "404 Not Found"}, status=404)

    def _expiry(self) -> str | None:
        seconds = self._server.get("expires_in")
        if not seconds:
            return None
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))

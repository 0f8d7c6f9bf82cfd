"""The fake coordinator refuses what GitLab refuses: without that the other contract tests prove nothing."""

from __future__ import annotations

import asyncio
import base64
import subprocess
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.protocol import FEATURES

INFO = {"name": "client", "features": dict.fromkeys(FEATURES, True)}
EMPTY = {"checksum": "crc32:00000000"}


class Client:
    """A runner of a few lines; every call answers (status, headers, text)."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session

    async def call(self, method: str, path: str, **how: Any) -> tuple[int, dict[str, str], str]:
        how = {"allow_redirects": False, **how}
        async with self._session.request(method, path, **how) as answer:
            return answer.status, dict(answer.headers), (await answer.read()).decode(errors="replace")

    async def ask(self, token: str = "glrt-a", features: dict[str, bool] | None = None, **more: Any) -> Any:
        info = INFO if features is None else {**INFO, "features": features}
        return await self.call("POST", "/api/v4/jobs/request", json={"token": token, "info": info, **more})

    async def update(self, job: Job, state: str | None, *, token: str | None = None, **more: Any) -> Any:
        body = {"token": token or job.token, "info": INFO, "output": {}, **more}
        if state is not None:
            body["state"] = state
        if state in ("success", "failed"):
            checksum = f"crc32:{zlib.crc32(job.trace):08x}"
            size = {"bytesize": len(job.trace)} if job.trace else {}
            body |= {"checksum": checksum, "output": {"checksum": checksum, **size}}
        if state == "failed":
            body.setdefault("failure_reason", "script_failure")
        return await self.call("PUT", f"/api/v4/jobs/{job.id}", json=body)

    async def patch(self, job: Job, spread: str | None, content: bytes, *, token: str | None = None) -> Any:
        headers = {"JOB-TOKEN": token or job.token, "Content-Type": "text/plain"}
        if spread is not None:
            headers["Content-Range"] = spread
        return await self.call("PATCH", f"/api/v4/jobs/{job.id}/trace?debug_trace=false", headers=headers, data=content)

    async def upload(self, job: Job, content: bytes, *, part: str = "file", **query: str) -> int:
        form = aiohttp.FormData()
        form.add_field(part, content, filename="a.zip", content_type="application/octet-stream")
        path = f"/api/v4/jobs/{job.id}/artifacts"
        status, _, _ = await self.call("POST", path, headers={"JOB-TOKEN": job.token}, params=query, data=form)
        return status

    async def download(self, job: Job, token: str | None, **query: str) -> Any:
        headers = {"JOB-TOKEN": token} if token else {}
        return await self.call("GET", f"/api/v4/jobs/{job.id}/artifacts", headers=headers, params=query)


@asynccontextmanager
async def serving(root: Path, **options: Any) -> AsyncIterator[tuple[FakeCoordinator, Client]]:
    async with FakeCoordinator(root / "server", **options) as fake, aiohttp.ClientSession(fake.url) as session:
        yield fake, Client(session)


async def running(fake: FakeCoordinator, client: Client, job_id: int = 1) -> Job:
    job = fake.add_job(job_payload(job_id, ["true"]))
    assert (await client.ask())[0] == 201
    return job


async def test_a_job_request_needs_a_known_token(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        assert (await client.ask(token=""))[0] == 400
        assert (await client.ask(token="glrt-bad"))[0] == 403
        fake.add_job(job_payload(1, ["true"]), runner_token="glrt-other")
        status, headers, _ = await client.ask()
        assert (status, headers["X-GitLab-Last-Update"]) == (204, "lab-1")
        status, headers, text = await client.ask(token="glrt-other")
        assert (status, headers["Content-Type"].partition(";")[0]) == (201, "application/json")
        assert '"id": 1' in text
        assert "X-GitLab-Last-Update" not in headers


async def test_a_current_last_update_is_answered_without_a_search(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        _, headers, _ = await client.ask()
        fake.add_job(job_payload(1, ["true"]))
        assert (await client.ask(last_update="lab-1"))[0] == 204, "a runner that knows of the queue is not given its job"
        assert (await client.ask(last_update=headers["X-GitLab-Last-Update"]))[0] == 201


async def test_a_long_poll_is_held_until_the_queue_changes_and_answers_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path, long_poll_s=10) as (fake, client):
        held = asyncio.create_task(client.ask(last_update="lab"))
        await asyncio.wait_for(fake.polled.wait(), 5)
        assert not held.done()
        fake.add_job(job_payload(1, ["true"]))
        status, headers, _ = await asyncio.wait_for(held, 5)
        assert status == 204
        assert "X-GitLab-Last-Update" not in headers
        assert (await client.ask(last_update="lab"))[0] == 201


async def test_a_job_is_dropped_when_its_runner_lacks_what_it_needs(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        needy = fake.add_job(job_payload(1, ["true"], secrets={"PASSWORD": {}}))
        plain = fake.add_job(job_payload(2, ["true"]))
        lacking = dict.fromkeys(FEATURES - {"vault_secrets"}, True)
        _, _, text = await client.ask(features=lacking)
        assert '"id": 2' in text
        assert (needy.state, needy.failure_reason) == ("failed", "runner_unsupported")
        assert plain.states == ["pending", "running"]


async def test_updates_need_the_token_of_that_job_and_a_state(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        job, other = await running(fake, client), await running(fake, client, 2)
        assert (await client.call("PUT", "/api/v4/jobs/1", json={"state": "running"}))[0] == 400
        assert (await client.call("PUT", "/api/v4/jobs/1", data=b"no json"))[0] == 400
        assert (await client.update(job, "running", token="wrong"))[0] == 403
        assert (await client.update(job, "running", token=other.token))[0] == 403
        unknown = Job({**job.payload, "id": 99})
        assert (await client.update(unknown, "running"))[0] == 403, "an unknown job is never a 404"
        assert (await client.update(job, None))[0] == 400
        assert (await client.update(job, "canceled"))[0] == 400
        assert not job.updates


async def test_an_ended_job_takes_nothing_and_says_its_state(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        job = await running(fake, client)
        status, headers, text = await client.update(job, "failed", exit_code=3)
        assert (status, text, headers["Job-Status"]) == (200, "200", "failed")
        assert (job.state, job.failure_reason, job.exit_code) == ("failed", "script_failure", 3)
        for status, headers, _ in [await client.update(job, "success"), await client.patch(job, "0-1", b"ab")]:
            assert (status, headers["Job-Status"]) == (403, "failed")
        assert job.states == ["pending", "running", "failed"]


async def test_a_waiting_job_takes_nothing(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        job = fake.add_job(job_payload(1, ["true"]))
        status, headers, _ = await client.patch(job, "0-1", b"ab")
        assert (status, headers["Job-Status"]) == (403, "pending")


async def test_the_log_grows_only_at_its_end(tmp_path: Path) -> None:
    async with serving(tmp_path, trace_interval=7) as (fake, client):
        job = await running(fake, client)
        assert (await client.patch(job, None, b"ab"))[0] == 400
        status, headers, _ = await client.patch(job, "0-38", b"x" * 39)
        assert (status, headers["Range"], headers["X-GitLab-Trace-Update-Interval"]) == (202, "0-39", "7")
        for spread, content in (("38-40", b"abc"), ("40-42", b"abc"), ("0-38", b"x" * 39)):
            status, headers, _ = await client.patch(job, spread, content)
            assert (status, headers["Range"], headers["Job-Status"]) == (416, "0-39", "running")
        assert (await client.patch(job, "39-41", b"abc"))[0] == 202
        assert (await client.patch(job, "42-44", b"abc", token="wrong"))[0] == 403
        assert bytes(job.trace) == b"x" * 39 + b"abc"
        await client.update(job, "success")
        assert job.log_is_whole()


async def test_a_log_that_is_not_whole_is_seen_by_its_checksum(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        job = await running(fake, client)
        await client.patch(job, "0-1", b"ab")
        await client.update(job, "success")
        job.trace[0] ^= 1
        assert not job.log_is_whole()


async def test_a_log_beyond_the_limit_of_the_server_fails_the_job(tmp_path: Path) -> None:
    async with serving(tmp_path, trace_limit_bytes=10) as (fake, client):
        job = await running(fake, client)
        status, headers, _ = await client.patch(job, "0-10", b"x" * 11)
        assert (status, headers["Job-Status"]) == (403, "failed")
        assert job.failure_reason == "trace_size_exceeded"


async def test_what_the_server_lets_pass_but_the_protocol_forbids_fails_the_test(tmp_path: Path) -> None:
    with pytest.raises(AssertionError) as caught:
        async with serving(tmp_path) as (fake, client):
            job = await running(fake, client)
            await client.patch(job, "0-5", b"ab")
            await client.update(job, "running", failure_reason="script_failure", info={"features": {}})
            await client.update(job, "success", exit_code=0)
    text = str(caught.value)
    for complaint in ("Content-Range 0-5 over 2 bytes", "features of an update", "with the reason script_failure", "exit_code 0"):
        assert complaint in text


async def test_a_canceled_job_is_canceled_whatever_its_runner_reports(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        job = await running(fake, client)
        fake.cancel(job)
        status, headers, _ = await client.patch(job, "0-1", b"ab")
        assert (status, headers["Job-Status"]) == (202, "canceling")
        _, headers, _ = await client.update(job, "success")
        assert headers["Job-Status"] == "canceled"
        assert job.states == ["pending", "running", "canceling", "canceled"]


async def test_canceling_twice_or_without_grace_ends_the_job(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        job = await running(fake, client)
        fake.cancel(job)
        fake.cancel(job)
        assert (await client.patch(job, "0-1", b"ab"))[0] == 403
        abrupt = fake.add_job(job_payload(2, ["true"]))
        await client.ask(features=dict.fromkeys(FEATURES - {"cancel_gracefully"}, True))
        fake.cancel(abrupt)
        assert abrupt.state == "canceled"


async def test_the_end_is_accepted_after_as_many_202_as_asked_for(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        job = fake.add_job(job_payload(1, ["true"]), finalize_202=2)
        await client.ask()
        for _ in range(2):
            status, headers, _ = await client.update(job, "success")
            assert (status, headers["Job-Status"], headers["X-GitLab-Trace-Update-Interval"]) == (202, "running", "1")
        assert (await client.update(job, "success"))[0] == 200
        assert [update["state"] for update in job.updates] == ["success"] * 3
        assert await fake.wait_finished(1, 1) is job


async def test_in_two_phases_a_job_runs_once_its_runner_says_so(tmp_path: Path) -> None:
    async with serving(tmp_path, two_phase=True) as (fake, client):
        job = fake.add_job(job_payload(1, ["true"]))
        assert (await client.update(job, "running"))[0] == 403, "not given to anybody yet"
        assert (await client.ask())[0] == 201
        assert job.state == "pending"
        assert (await client.patch(job, "0-1", b"ab"))[0] == 403
        assert (await client.update(job, "running", token="wrong"))[0] == 403
        assert (await client.update(job, "running"))[0] == 200
        assert (await client.patch(job, "0-1", b"ab"))[0] == 202


async def test_faults_act_in_order_and_only_as_often_as_said(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        job = await running(fake, client)
        fake.faults.add("PATCH .*/trace", "status", 1, status=500, skip=1)
        fake.faults.add("PUT", "status", 1, status=409, where='"state": ?"success"')
        assert (await client.patch(job, "0-1", b"ab"))[0] == 202
        assert (await client.patch(job, "2-3", b"cd"))[0] == 500
        assert (await client.patch(job, "2-3", b"cd"))[0] == 202
        assert (await client.update(job, "running"))[0] == 200
        assert (await client.update(job, "success"))[0] == 409
        assert (await client.update(job, "success"))[0] == 200


async def test_lost_answers_were_acted_on_and_cut_requests_were_not(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        job = await running(fake, client)
        fake.faults.add("PATCH", "lost")
        with pytest.raises(aiohttp.ClientError):
            await client.patch(job, "0-1", b"ab")
        assert bytes(job.trace) == b"ab"
        fake.faults.add("PATCH", "reset")
        with pytest.raises(aiohttp.ClientError):
            await client.patch(job, "2-3", b"cd")
        assert bytes(job.trace) == b"ab"
        fake.faults.add("PATCH", "truncate", to=1)
        status, headers, _ = await client.patch(job, "2-3", b"cd")
        assert (status, headers["Range"]) == (416, "0-1")
        assert [request.status for request in fake.requests_of(job)] == [None, None, 416]


async def test_artifacts_are_one_file_of_the_right_kind_stored_once(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        job = await running(fake, client)
        query = {"artifact_format": "zip", "artifact_type": "archive", "expire_in": "1 week"}
        assert await client.upload(job, b"no file", part="other", **query) == 400
        assert await client.upload(job, b"gz", artifact_format="gzip", artifact_type="archive") == 400
        assert await client.upload(job, b"PK\r\n--x\0", **query) == 201
        assert await client.upload(job, b"PK\r\n--x\0", **query) == 201, "the same again is no change"
        assert await client.upload(job, b"PK2", **query) == 400
        assert await client.upload(job, b"gz", artifact_format="gzip", artifact_type="junit") == 201
        assert [(one.kind, one.file_name, one.content) for one in job.artifacts] == [
            ("archive", "a.zip", b"PK\r\n--x\0"),
            ("junit", "a.zip", b"gz"),
        ]
        assert job.artifacts[0].form == query
        job.end("success")
        assert await client.upload(job, b"late", artifact_type="dotenv", artifact_format="gzip") == 403


async def test_artifacts_are_given_to_who_may_have_them(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        job = await running(fake, client)
        assert (await client.download(job, job.token))[0] == 404
        await client.upload(job, b"PK", artifact_type="archive")
        job.end("success")
        status, headers, text = await client.download(job, job.token, direct_download="true")
        assert (status, text, headers["Content-Disposition"]) == (200, "PK", 'attachment; filename="a.zip"')
        assert (await client.download(job, None))[0] == 401
        assert (await client.download(job, "wrong"))[0] == 401


async def test_a_direct_download_leads_to_a_store_that_refuses_job_tokens(tmp_path: Path) -> None:
    async with serving(tmp_path, redirect_artifacts=True) as (fake, client):
        job = await running(fake, client)
        await client.upload(job, b"PK", artifact_type="archive")
        assert (await client.download(job, job.token))[0] == 200, "not direct: through the server"
        status, headers, _ = await client.download(job, job.token, direct_download="true")
        assert (status, headers["Location"]) == (302, f"{fake.url}/objects/1-0-a.zip")
        path = headers["Location"].removeprefix(fake.url)
        assert (await client.call("GET", path))[2] == "PK"
        assert (await client.call("GET", path, headers={"JOB-TOKEN": job.token}))[0] == 400


async def test_the_bucket_keeps_objects_by_key(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, client):
        assert (await client.call("HEAD", "/bkt/a/b"))[0] == 404
        await client.call("PUT", "/bkt/a/b", data=b"cache", headers={"x-amz-meta-cachekey": "k"})
        status, headers, text = await client.call("GET", "/bkt/a/b?X-Amz-Signature=anything")
        assert (status, text, headers["x-amz-meta-cachekey"]) == (200, "cache", "k")
        assert fake.bucket.objects == {"a/b": b"cache"}


async def test_a_private_repository_is_for_jobs_that_execute(tmp_path: Path) -> None:
    async with serving(tmp_path, git_auth=True) as (fake, client):
        commit = git_server.make_repository(fake.repositories, "group/app", {"README": "hello\n", "x/run.sh": "true\n"})
        job = await running(fake, client)
        place = f"{fake.url}/git/group/app.git"
        assert await refs(place, None) is None
        assert await refs(place, "wrong") is None
        assert commit in str(await refs(place, job.token))
        job.end("success")
        assert await refs(place, job.token) is None


async def test_a_commit_is_fetched_by_its_id(tmp_path: Path) -> None:
    async with serving(tmp_path) as (fake, _client):
        commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
        for command in (
            ["init", "-q"],
            ["fetch", "-q", "--depth", "1", f"{fake.url}/git/app.git", commit],
            ["checkout", "-q", commit],
        ):
            assert (await git(tmp_path, *command))[0] == 0
        assert (tmp_path / "README").read_text() == "hello\n"


async def refs(place: str, token: str | None) -> str | None:
    """What ``git ls-remote`` finds; None where it is refused."""
    credentials = base64.b64encode(f"gitlab-ci-token:{token}".encode()).decode()
    how = ["-c", f"http.extraHeader=Authorization: Basic {credentials}"] if token else []
    status, text = await git(Path("/"), *how, "ls-remote", place)
    return text if status == 0 else None


async def git(cwd: Path, *arguments: str) -> tuple[int, str]:
    environment = {**git_server.GIT_ENVIRONMENT, "PATH": "/usr/bin:/bin", "HOME": "/nonexistent", "GIT_TERMINAL_PROMPT": "0"}
    process = await asyncio.create_subprocess_exec(
        "git", *arguments, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    out, _ = await process.communicate()
    return process.returncode or 0, out.decode()

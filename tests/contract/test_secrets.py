"""Secrets of a job: resolved with its own token, masked in its log, gone with it (``job-lifecycle.md`` 18)."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.fakes.providers import JWT, ROLE, Providers
from tests.waiting import files_below, until

Make = Callable[..., Daemon]
REASONS = ["runner_configuration_error", "runner_external_dependency_failure"]
VALUE = "top-secret-value"


@pytest.fixture
async def providers() -> AsyncIterator[Providers]:
    async with Providers() as found:
        yield found
        assert found.refused == []


def payload(secrets: Any, script: list[str], **variables: str) -> dict[str, Any]:
    found = job_payload(1, script, variables={"FF_TIMESTAMPS": "false", "WHERE": "app", **variables}, secrets=secrets)
    found["variables"].append({"key": "ID_TOKEN", "value": JWT, "masked": True})
    found["features"]["failure_reasons"] += REASONS
    return found


def vault(providers: Providers, *, engine: str = "kv-v2", path: str = "$WHERE/db", role: str = "ci", **more: Any) -> Any:
    auth = {"name": "jwt", "path": "jwt", "data": {"jwt": "$ID_TOKEN", "role": role}}
    server = {"url": providers.url, "namespace": providers.namespace, "auth": auth}
    return {"vault": {"server": server, "engine": {"name": engine, "path": "kv"}, "path": path, "field": "password"}, **more}


async def run(fake: FakeCoordinator, daemon: Daemon, found: dict[str, Any]) -> Job:
    job = fake.add_job(found)
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 30)
    return job


async def test_a_secret_of_vault_is_a_masked_file(fake: FakeCoordinator, make_daemon: Make, providers: Providers) -> None:
    providers.stored["kv/data/app/db"] = {"data": {"password": VALUE, "user": "me"}, "metadata": {}}
    providers.namespace = "team"
    script = ['echo "$(cat $DB)"', "stat -c %a $DB", 'test "$(cat $DB)" = top-secret-"value"']
    daemon = make_daemon()
    job = await run(fake, daemon, payload({"DB": vault(providers)}, script))
    assert job.state == "success", job.log
    lines = ["Resolving secrets", 'Resolving secret "DB"...', 'Using "vault" secret resolver...', "Preparing the"]
    places = [job.log.index(line) for line in lines]
    assert places == sorted(places)
    assert "\n[MASKED]\n" in job.log
    assert "\n600\n" in job.log
    assert VALUE not in job.log
    assert VALUE not in daemon.log
    assert providers.calls == ["PUT /v1/auth/jwt/login", "GET /v1/kv/data/app/db"]
    await until(lambda: not list((daemon.state / "jobs").iterdir()))
    assert not [path for path in files_below(daemon.root) if VALUE.encode() in path.read_bytes()]


@pytest.mark.parametrize(("engine", "place"), [("kv-v1", "kv/app/db"), ("generic", "kv/app/db")])
async def test_other_engines_and_plain_variables(
    engine: str, place: str, fake: FakeCoordinator, make_daemon: Make, providers: Providers
) -> None:
    providers.stored[place] = {"password": 1234567}
    secrets = {"DB": vault(providers, engine=engine, file=False)}
    job = await run(fake, make_daemon(), payload(secrets, ['echo "it is $DB"', "test ${#DB} = 7"]))
    assert job.state == "success", job.log
    assert "it is [MASKED]" in job.log


async def test_a_secret_is_not_expanded(fake: FakeCoordinator, make_daemon: Make, providers: Providers) -> None:
    providers.stored["kv/data/app/db"] = {"data": {"password": "a$WHERE$$b"}}
    job = await run(fake, make_daemon(), payload({"DB": vault(providers, file=False)}, ["test \"$DB\" = 'a$WHERE$$b'"]))
    assert job.state == "success", job.log


@pytest.mark.parametrize(
    ("change", "reason", "text"),
    [
        pytest.param(
            {"role": "nobody"},
            "runner_configuration_error",
            "Job failed: resolving secrets: initializing Vault service: preparing authenticated client: authenticating Vault "
            'client: writing to Vault: api error: status code 400: role "nobody" could not be found',
            id="role",
        ),
        pytest.param({"path": "nothing"}, "runner_configuration_error", "resolving secrets: secret not found: DB", id="path"),
        pytest.param({"engine": "pki"}, "runner_configuration_error", 'secrets engine "pki" is not known', id="engine"),
        pytest.param({"vault": {"server": "x"}}, "runner_configuration_error", "the description of the secret", id="shape"),
        pytest.param(
            {"vault": {"server": {"url": "file:///etc", "auth": {"name": "jwt", "data": {"jwt": "x"}}}}},
            "runner_configuration_error",
            "is no address of a provider",
            id="address",
        ),
    ],
)
async def test_what_the_job_says_wrongly_is_a_configuration_error(
    change: dict[str, Any], reason: str, text: str, fake: FakeCoordinator, make_daemon: Make, providers: Providers
) -> None:
    providers.stored["kv/data/app/db"] = {"data": {"other": VALUE}}
    job = await run(fake, make_daemon(), payload({"DB": vault(providers, **change)}, ["echo never"]))
    assert (job.state, job.failure_reason) == ("failed", reason), job.log
    assert text in job.log
    assert "Preparing" not in job.log
    assert JWT not in job.log


async def test_a_missing_secret_is_empty_where_that_is_wanted(
    fake: FakeCoordinator, make_daemon: Make, providers: Providers
) -> None:
    found = payload({"DB": vault(providers)}, ["test -e $DB", "test ! -s $DB"], FF_SECRET_RESOLVING_FAILS_IF_MISSING="false")
    job = await run(fake, make_daemon(), found)
    assert job.state == "success", job.log


async def test_an_outage_is_tried_again_and_then_the_fault_of_the_provider(
    fake: FakeCoordinator, make_daemon: Make, providers: Providers
) -> None:
    providers.troubles = [503] * 3
    job = await run(fake, make_daemon(), payload({"DB": vault(providers)}, ["echo never"]))
    assert (job.state, job.failure_reason) == ("failed", "runner_external_dependency_failure")
    assert "api error: status code 503: the vault is sealed" in job.log


async def test_attempts_repeat_the_stage(fake: FakeCoordinator, make_daemon: Make, providers: Providers) -> None:
    providers.stored["kv/data/app/db"] = {"data": {"password": VALUE}}
    providers.troubles = [503] * 3
    variables = {"SECRETS_RETRIEVAL_ATTEMPTS": "2", "FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY": "false"}
    job = await run(fake, make_daemon(), payload({"DB": vault(providers)}, ["test -s $DB"], **variables))
    assert job.state == "success", job.log
    assert job.log.count("Resolving secrets") == 2
    assert job.log.count("WARNING: Retrying...") == 1


async def test_nobody_there_is_a_system_failure(fake: FakeCoordinator, make_daemon: Make, providers: Providers) -> None:
    secret = vault(providers)
    secret["vault"]["server"]["url"] = "http://127.0.0.1:9"
    job = await run(fake, make_daemon(), payload({"DB": secret}, ["echo never"]))
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert "Job failed (system failure): resolving secrets: " in job.log
    assert "PUT http://127.0.0.1:9/v1/auth/jwt/login" in job.log


async def test_a_table_without_secrets_is_mentioned(fake: FakeCoordinator, make_daemon: Make) -> None:
    job = await run(fake, make_daemon(), payload({}, ["true"]))
    assert job.state == "success"
    assert "Resolving secrets" in job.log


async def test_who_adopts_the_job_masks_the_same(fake: FakeCoordinator, make_daemon: Make, providers: Providers) -> None:
    providers.stored["kv/data/app/db"] = {"data": {"password": VALUE}}
    daemon = make_daemon()
    gate = daemon.root / "gate"
    found = payload({"DB": vault(providers)}, ["cat $DB; echo", f"until [ -e {gate} ]; do sleep 0.1; done", "cat $DB; echo"])
    job = fake.add_job(found)
    daemon.start()
    await until(lambda: "[MASKED]" in job.log)
    daemon.kill()
    daemon.start()
    gate.touch()
    await asyncio.wait_for(job.ended.wait(), 30)
    assert job.state == "success", job.log
    assert job.log.count("\n[MASKED]\n") == 2
    assert VALUE not in job.log
    assert len(providers.calls) == 2


async def test_who_adopts_the_job_while_it_asks_asks_again(
    fake: FakeCoordinator, make_daemon: Make, providers: Providers
) -> None:
    providers.stored["kv/data/app/db"] = {"data": {"password": VALUE}}
    providers.opened.clear()
    daemon = make_daemon()
    job = fake.add_job(payload({"DB": vault(providers)}, ["cat $DB; echo"]))
    daemon.start()
    await until(lambda: providers.calls, 60)
    daemon.kill()
    providers.opened.set()
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 60)
    assert job.state == "success", job.log
    assert "\n[MASKED]\n" in job.log
    assert job.log_is_whole()


async def test_a_job_that_is_canceled_while_it_asks_ends(fake: FakeCoordinator, make_daemon: Make, providers: Providers) -> None:
    providers.opened.clear()
    daemon = make_daemon()
    job = fake.add_job(payload({"DB": vault(providers)}, ["echo never"]))
    daemon.start()
    await until(lambda: providers.calls, 60)
    fake.cancel(job)
    await asyncio.wait_for(job.ended.wait(), 60)
    assert job.state == "canceled"
    assert "Preparing" not in job.log
    providers.opened.set()


async def test_azure_key_vault(fake: FakeCoordinator, make_daemon: Make, providers: Providers) -> None:
    providers.stored |= {"db": VALUE, "db/v1": "older-value"}
    server = {"client_id": "client", "tenant_id": "tenant", "jwt": "$ID_TOKEN", "url": providers.url}
    secrets = {
        "NEW": {"azure_key_vault": {"name": "db", "server": server}, "file": False},
        "OLD": {"azure_key_vault": {"name": "db", "version": "v1", "server": server}, "file": False},
    }
    daemon = make_daemon()
    daemon.environment["AZURE_AUTHORITY_HOST"] = providers.url
    job = await run(fake, daemon, payload(secrets, ['echo "$NEW $OLD"', "test ${#NEW} = 16 -a ${#OLD} = 11"]))
    assert job.state == "success", job.log
    assert 'Using "azure-key-vault" secret resolver...' in job.log
    assert "\n[MASKED] [MASKED]\n" in job.log


async def test_aws_secrets_manager(fake: FakeCoordinator, make_daemon: Make, providers: Providers) -> None:
    providers.stored[json.dumps({"SecretId": "db", "VersionStage": "AWSCURRENT"}, sort_keys=True)] = json.dumps({"pw": VALUE})
    server = {"region": "eu-west-3", "jwt": "$ID_TOKEN", "role_arn": ROLE, "role_session_name": "session"}
    secret = {"secret_id": "db", "version_stage": "AWSCURRENT", "field": "pw", "server": server}
    daemon = make_daemon()
    daemon.environment |= {
        "AWS_ENDPOINT_URL_STS": f"{providers.url}/sts",
        "AWS_ENDPOINT_URL_SECRETS_MANAGER": f"{providers.url}/aws",
    }
    job = await run(fake, daemon, payload({"DB": {"aws_secrets_manager": secret, "file": False}}, ["test ${#DB} = 16"]))
    assert job.state == "success", job.log
    assert 'Using "aws_secrets_manager" secret resolver...' in job.log


async def test_gitlab_secrets_manager(fake: FakeCoordinator, make_daemon: Make, providers: Providers) -> None:
    providers.stored["secrets/kv/data/explicit/db"] = {"data": {"value": VALUE}}
    server = {"url": providers.url, "inline_auth": {"path": "x", "jwt": JWT, "role": "ci", "auth_mount": "gitlab"}}
    secret = {"server": server, "engine": {"name": "kv-v2", "path": "secrets/kv"}, "path": "explicit/db", "field": "value"}
    job = await run(fake, make_daemon(), payload({"DB": {"gitlab_secrets_manager": secret}}, ["test -s $DB"]))
    assert job.state == "success", job.log
    assert 'Using "gitlab_secrets_manager" secret resolver...' in job.log
    assert providers.calls == ["GET /v1/secrets/kv/data/explicit/db"]


async def test_a_provider_that_the_reference_does_not_know_is_left_out(fake: FakeCoordinator, make_daemon: Make) -> None:
    """GitLab still describes secrets of Akeyless; GitLab Runner dropped that provider in 18.3."""
    server = {
        "access_id": "p-1",
        "akeyless_api_url": "https://api.akeyless.io",
        "akeyless_access_type": "jwt",
        "jwt": "$ID_TOKEN",
    }
    secrets = {"DB": {"akeyless": {"name": "db", "server": server}, "file": False}}
    job = await run(fake, make_daemon(), payload(secrets, ['echo "it is ${DB-unset}"']))
    assert job.state == "success", job.log
    assert "WARNING: Not resolved: no resolver that can handle the secret" in job.log
    assert "it is unset\n" in job.log

"""Inputs of a job (``job-lifecycle.md`` 18)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon

Make = Callable[..., Daemon]


def inputs(**values: Any) -> list[dict[str, Any]]:
    kinds = {str: "string", int: "number", bool: "boolean", list: "array"}
    return [{"key": key, "value": {"type": kinds[type(value)], "content": value}} for key, value in values.items()]


async def run(fake: FakeCoordinator, daemon: Daemon, payload: dict[str, Any]) -> Job:
    job = fake.add_job(payload)
    daemon.start()
    await asyncio.wait_for(job.ended.wait(), 20)
    return job


async def test_inputs_are_put_into_scripts(fake: FakeCoordinator, make_daemon: Make) -> None:
    payload = job_payload(
        1,
        ['echo "to ${{ job.inputs.where }} x${{ job.inputs.count + 1 }} $CI_JOB_ID"'],
        after_script=["echo ${{ job.inputs.loud && 'LOUD' || 'quiet' }} $${{ job.inputs.tags[0] }}"],
        inputs=inputs(where="staging", count=2, loud=True, tags=["HOME"]),
    )
    job = await run(fake, make_daemon(), payload)
    assert job.state == "success"
    assert "to staging x3 " in job.log
    assert "LOUD /" in job.log


async def test_without_inputs_text_is_left_alone(fake: FakeCoordinator, make_daemon: Make) -> None:
    job = await run(fake, make_daemon(), job_payload(1, ["echo 'a ${{ github.token }} b'"]))
    assert job.state == "success"
    assert "a ${{ github.token }} b" in job.log


async def test_the_flag_switches_it_off(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon(extra="  [runners.feature_flags]\n    FF_ENABLE_JOB_INPUTS_INTERPOLATION = false\n")
    job = await run(fake, daemon, job_payload(1, ["echo '${{ job.inputs.a }}'"], inputs=inputs(a="x")))
    assert "\n${{ job.inputs.a }}" in job.log.replace("Z 01O ", "\n")


@pytest.mark.parametrize(
    ("script", "text"),
    [
        ("echo ${{ job.inputs.b }}", "failed to interpolate job inputs: 'b' does not exist"),
        ("echo ${{ job.inputs.a", "failed to interpolate job inputs: expected '}}' at 1:22"),
    ],
)
async def test_an_expression_that_fails_is_a_configuration_error(
    script: str, text: str, fake: FakeCoordinator, make_daemon: Make
) -> None:
    payload = job_payload(1, [script], inputs=inputs(a="x"))
    payload["features"]["failure_reasons"] = ["runner_configuration_error"]
    job = await run(fake, make_daemon(), payload)
    assert (job.state, job.failure_reason) == ("failed", "runner_configuration_error")
    assert f"ERROR: Job failed: {text}" in job.log
    assert job.log_is_whole()
    assert "Running with" not in job.log


async def test_sensitive_inputs_are_not_shown(fake: FakeCoordinator, make_daemon: Make) -> None:
    given = inputs(password="hush-hush")
    given[0]["value"]["sensitive"] = True
    job = await run(fake, make_daemon(), job_payload(1, ["echo ${{ job.inputs.password }}"], inputs=given))
    assert job.state == "failed"
    assert "job.inputs.password is sensitive and cannot be used here" in job.log
    assert "hush" not in job.log

"""Resolves the secrets of a job before anything else is done (``job-lifecycle.md`` 18)."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable

from runner.errors import ProviderFailed, SecretError, SecretMissing, SecretRefused
from runner.job.attempts import pause_s
from runner.job.outcome import JobFailure, Outcome, Reason, misconfigured
from runner.job.plan import JobPlan
from runner.job.record import ResolvedSecret
from runner.job.steps import Step, Steps
from runner.trace.log import JobLog

STAGE = "resolve_secrets"
# A bound for one secret, whatever its provider does; requests have limits of their own.
SECRET_TIMEOUT_S = 300.0
HEADLINE = "Resolving secrets"
NOT_RESOLVED = "Not resolved: no resolver that can handle the secret"


class SecretsStage:
    """The stage before all others, with its attempts; what it finds is kept in the record of the job."""

    def __init__(self, plan: JobPlan, job_log: JobLog, steps: Steps, clock_ns: Callable[[], int]) -> None:
        self._plan = plan
        self._log = job_log
        self._steps = steps
        self._clock_ns = clock_ns

    @property
    def is_due(self) -> bool:
        """Whether the stage is still to be taken."""
        return self._plan.payload.secrets is not None and self._steps.ended(STAGE) is None

    async def take(self) -> None:
        """Resolve all secrets. Raises the failure of the last attempt, which names what the provider said."""
        attempts = self._plan.settings.secrets_attempts
        for attempt in range(1, attempts + 1):
            failure = await self._attempt(f"{STAGE} {attempt}")
            if failure is None:
                break
            if attempt == attempts:
                raise failure
            self._say_retry(attempt)
            await asyncio.sleep(pause_s(attempt, grows=self._plan.flags["FF_USE_EXPONENTIAL_BACKOFF_STAGE_RETRY"]))
        self._steps.end(self._steps.begin(STAGE, replayable=True))

    async def _attempt(self, name: str) -> JobFailure | None:
        ended = self._steps.ended(name)
        if ended is not None:
            return None if ended.failure is None else JobFailure(ended.failure)
        step = self._steps.begin(name, replayable=False)
        try:
            self._plan.record.keep_secrets(await self._resolve(step))
        except JobFailure as failure:
            self._steps.end(step, failure.outcome)
            return failure
        self._steps.end(step)
        return None

    def _say_retry(self, attempt: int) -> None:
        name = f"retry {STAGE} {attempt}"
        if self._steps.ended(name) is None:
            step = self._steps.begin(name, replayable=True)
            self._log.warning("Retrying...", time_ns=step.at_ns)
            self._steps.end(step)

    async def _resolve(self, step: Step) -> list[ResolvedSecret]:
        """One attempt, in the order of the payload."""
        # Most jobs have no secrets, and most daemons no job that has.
        from runner.secrets.http import SecretsHttp
        from runner.secrets.providers import provider_of

        self._log.header(HEADLINE, time_ns=step.at_ns)
        found: list[ResolvedSecret] = []
        async with SecretsHttp(os.environ) as http:
            for name, secret in (self._plan.payload.secrets or {}).items():
                self._log.plain(f'Resolving secret "{name}"...', time_ns=self._clock_ns())
                known = provider_of(secret)
                if known is None:
                    self._log.warning(NOT_RESOLVED, time_ns=self._clock_ns())
                    continue
                provider, description = known
                self._log.plain(f'Using "{provider.name}" secret resolver...', time_ns=self._clock_ns())
                try:
                    async with asyncio.timeout(SECRET_TIMEOUT_S):
                        value = await provider.resolve(http, description, self._plan.variables.expand)
                except SecretMissing as error:
                    if self._plan.flags["FF_SECRET_RESOLVING_FAILS_IF_MISSING"]:
                        raise misconfigured(f"resolving secrets: {error}: {name}") from error
                    value = ""
                except SecretError as error:
                    raise _failure(error) from error
                except TimeoutError as error:
                    raise _failure(SecretError(f"{name}: the provider has not answered in time")) from error
                found.append(ResolvedSecret(name=name, value=value, file=secret.get("file") is not False))
        return found


def _failure(error: SecretError) -> JobFailure:
    reasons = ((SecretRefused, Reason.CONFIGURATION), (ProviderFailed, Reason.EXTERNAL))
    reason = next((reason for kind, reason in reasons if isinstance(error, kind)), Reason.SYSTEM)
    return JobFailure(Outcome(reason=reason, message=f"resolving secrets: {error}"))

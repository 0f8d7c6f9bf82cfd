"""Jobs that have the rights of the daemon, and with them its tokens (``config-cli-daemon.md`` 15.3)."""

from __future__ import annotations

import os

from executors.accounts import account
from executors.errors import ExecutorError
from executors.registry import KINDS
from runner.config.model import RunnerConfig


def remedy_for_own_account(runner: RunnerConfig, job_user: str | None) -> str:
    """How to give the jobs of a runner an account of their own, where they have none and this host is where they run; empty
    otherwise. ``job_user`` is the account for all runners."""
    kind = KINDS[runner.executor]
    if kind.in_containers or kind.is_scripted:
        return ""
    try:
        if account(runner.pyrunner.job_user or job_user).switch:
            return ""
    except ExecutorError:
        return ""  # an account that is not there fails the jobs
    return "start it as root with --user" if os.geteuid() else "name an account with --user or job_user"

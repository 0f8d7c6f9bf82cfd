"""What the log says of the security policy that a job comes from (``job-lifecycle.md`` 6.4)."""

from __future__ import annotations

from runner.coordinator.payload import PolicyOptions


def policy_lines(policy: PolicyOptions) -> list[str]:
    """The lines between the sources and the first script; none for a job of the project's own."""
    if not policy.execution_policy_job:
        return []
    lines = [f'Job triggered by policy "{policy.policy_name}".']
    if policy.policy_variables_override_allowed is None:
        lines.append("Variables defined in the policy take precedence over matching user-defined CI/CD variables for this job.")
        return lines
    verb = "allowed" if policy.policy_variables_override_allowed else "ignored"
    names = policy.policy_variables_override_exceptions
    but = f" (except for {', '.join(names)})" if names else ""
    lines.append(f"User-defined CI/CD variables are {verb} in this job{but} according to the policy.")
    return lines

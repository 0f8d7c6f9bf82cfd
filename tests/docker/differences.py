"""Deliberate differences from the recordings of Docker jobs, each with its reason: the one list of them.

Every recording is still replayed, and must end as it says unless ``ends`` gives another end.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DockerDifference:
    """``ends``: (state, failure_reason, exit_code) where they are not the recording's, one for each job. ``log`` tells that
    the log is the recording's nevertheless."""

    reason: str
    ends: tuple[tuple[str, str | None, int | None], ...] = ()
    log: bool = False


SUCCESS = ("success", None, None)
# What a job is to blame for where the server knows few reasons.
SCRIPT = ("failed", "script_failure", None)
ONCE = "what cannot get better is tried once"
NO_HELPER = "a helper that has nothing to do is not made, so its image is not looked for"
NO_PROGRAM = "a job's variable cannot name a program that is run on the host"
SIDE_BY_SIDE = "images are looked for side by side: those behind the one that fails have lines, too"
IMAGES_DIFFER: dict[str, DockerDifference] = {
    "config-policy-unknown": DockerDifference(ONCE),
    "helper-image-missing": DockerDifference(NO_HELPER, (SUCCESS,)),
    "image-none-at-all": DockerDifference(ONCE),
    "image-not-allowed": DockerDifference(f"{ONCE}, and the job is to blame", (SCRIPT,)),
    "image-policy-of-job-allowed": DockerDifference(NO_HELPER, (SUCCESS,)),
    "policy-not-allowed-default": DockerDifference(NO_HELPER),
    "pull-auth-config-broken": DockerDifference("what is wrong with the JSON is said in other words"),
    "pull-auth-helper-missing": DockerDifference(NO_PROGRAM),
    "pull-auth-helper-path": DockerDifference(NO_PROGRAM, (SUCCESS,)),
    "service-not-allowed": DockerDifference(f"{ONCE}, and the job is to blame", (SCRIPT,)),
    "service-pull-policy": DockerDifference(SIDE_BY_SIDE),
}

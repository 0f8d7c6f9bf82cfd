"""Deliberate differences from the recordings of Docker jobs, each with its reason: the one list of them.

Every recording is still replayed, and must end as it says unless ``ends`` gives another end. ``IMAGES_DIFFER`` are those
about images, ``DIFFERS`` the others; ``NOT_YET`` cannot be replayed here.
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

ACTED = "somebody acts while it runs: cancels are tried in test_jobs.py"

HELPER = "a job that needs no helper has none, so nothing is said of it and nothing about it can fail"
USED = "the volumes of the recording held files of earlier recordings"
WORKER = "the image of the recording knows no name for its user 1000, this one does"

DIFFERS: dict[str, DockerDifference] = {
    "engine-host-scheme-unsupported": DockerDifference("the message says which schemes there are"),
    "fetch-twice": DockerDifference(USED),
    "gpus-missing": DockerDifference(HELPER),
    "limits": DockerDifference(HELPER),
    "mac-address-bad": DockerDifference(HELPER),
    "network-none": DockerDifference("the address of the server is another one"),
    "oom": DockerDifference("memory that ran out is explained"),
    "umask-flag": DockerDifference(USED),
    "service-debug": DockerDifference("what services write is shown as it comes"),
    "service-name-empty-no-alias": DockerDifference(
        "a service whose name is empty is an error, with and without an alias", (("failed", "runner_configuration_error", None),)
    ),
    "service-probe-fails": DockerDifference("a port is tried sooner and so more often"),
    "service-probe-variable-bad": DockerDifference("what a failed try made is removed without a complaint"),
    "service-start-fails": DockerDifference(SIDE_BY_SIDE),
    "umask-flag-config-user": DockerDifference("the shell says in its own words what is not permitted"),
    "umask-flag-user-image": DockerDifference(WORKER),
    "user-of-config": DockerDifference(WORKER),
    "user-of-image-options": DockerDifference(WORKER),
    "volumes-driver-options-bad": DockerDifference("volumes are made side by side, so another one may be the first to fail"),
    "volumes-named-propagation": DockerDifference(HELPER),
    "volumes-suffix": DockerDifference("a slot is free once its containers are removed, a moment after the result"),
    "volumes-protected": DockerDifference(USED),
}
ELSEWHERE = "needs images, volumes or containers of the machine of the recording"
NOT_YET: dict[str, str] = {
    "service-digest": ELSEWHERE,
    "service-names-registry": ELSEWHERE,
    "volumes-from": ELSEWHERE,
    "memory-malformed": "a size that is none takes the runner out of use when the configuration is read",
}

"""What hostile jobs try on an engine (``docker-executor.md`` 13): each rule with the attack that it is for."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.docker.conftest import state_filter
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload
from tests.waiting import until

pytestmark = pytest.mark.docker

MakeDaemon = Callable[..., Daemon]
# The coordinator of the tests listens on this machine only.
HOST_NETWORK = '    network_mode = "host"\n'
MIB = 1024 * 1024
PWNED = "/cache/pwned"
PLANTS = {
    "fsmonitor": f"git config core.fsmonitor 'touch {PWNED}; false'",
    "hooks": f"mkdir -p .git/hooks; printf '#!/bin/sh\\ntouch {PWNED}\\n' > .git/hooks/post-checkout; "
    "cp .git/hooks/post-checkout .git/hooks/reference-transaction; chmod +x .git/hooks/*",
    "hooks-path": f"mkdir ../h; printf '#!/bin/sh\\ntouch {PWNED}\\n' > ../h/post-checkout; chmod +x ../h/*; "
    "git config core.hooksPath $PWD/../h",
    "filter": f"git config filter.x.smudge 'touch {PWNED}; cat'; mkdir -p .git/info; echo '* filter=x' > .git/info/attributes",
    "include": f"printf '[core]\\nfsmonitor = touch {PWNED}; false\\n' > ../evil; git config include.path $PWD/../evil",
    "commondir": f"cp -r .git ../elsewhere; git -C ../elsewhere config core.fsmonitor 'touch {PWNED}; false'; "
    "echo $PWD/../elsewhere > .git/commondir",
    "git-link": f"mv .git ../elsewhere; git -C ../elsewhere config core.fsmonitor 'touch {PWNED}; false'; "
    "ln -s ../elsewhere .git",
    "alternates": f"mkdir -p ../alt; touch {PWNED}.no; echo $PWD/../alt > .git/objects/info/alternates",
}


async def ended(job: Job, timeout_s: float = 90.0) -> Job:
    async with asyncio.timeout(timeout_s):
        await job.ended.wait()
    return job


async def ran(job: Job) -> Job:
    await ended(job)
    assert job.state == "success", job.log
    return job


def with_sources(fake: FakeCoordinator, commit: str, job_id: int, script: list[str], **changes: Any) -> dict[str, Any]:
    payload = job_payload(job_id, script, **changes)
    payload["variables"] = [entry for entry in payload["variables"] if entry["key"] != "GIT_STRATEGY"]
    payload["git_info"] |= fake.git_info(commit)
    payload["image"] = {"name": "debian-git:local"}
    return payload


def made(client: docker.APIClient, daemon: Daemon, kind: str) -> list[dict[str, Any]]:
    """The containers of a kind that a daemon has on the engine, inspected."""
    labels = [*state_filter(daemon)["label"], f"com.gitlab.gitlab-runner.type={kind}"]
    found = []
    for entry in client.containers(all=True, filters={"label": labels}):
        try:
            found.append(client.inspect_container(entry["Id"]))
        except docker.errors.NotFound:
            continue
    return found


@pytest.fixture
def make_daemon(make_daemon: MakeDaemon) -> MakeDaemon:
    """Daemons that take one job at a time: the next one gets the same place, with all that the last one has left there."""
    return functools.partial(make_daemon, extra="  limit = 1")


@pytest.fixture
async def running(fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient) -> AsyncIterator[Callable[..., Any]]:
    """A job with sources and a service whose script waits until the test is over: the daemon and the job."""
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    jobs: list[Job] = []

    async def start(docker_keys: str = "", **changes: Any) -> tuple[Daemon, Job]:
        daemon = make_daemon(docker=HOST_NETWORK + "    wait_for_services_timeout = -1\n" + docker_keys)
        daemon.start()
        service = {"name": "busybox:local", "alias": "web", "command": ["sleep", "600"]}
        payload = with_sources(fake, commit, 1, ["echo waiting", "sleep 600"], services=[service], **changes)
        jobs.append(fake.add_job(payload))
        await until(lambda: "\nwaiting\n" in jobs[-1].log or jobs[-1].ended.is_set(), 90)
        assert jobs[-1].state == "running", jobs[-1].log
        return daemon, jobs[-1]

    yield start
    for job in jobs:
        fake.cancel(job)
        await ended(job)


# 1, 2: what a job leaves in the sources


@pytest.mark.parametrize("plant", PLANTS)
async def test_sources_that_a_job_has_prepared_do_nothing_to_the_next(
    plant: str, fake: FakeCoordinator, make_daemon: MakeDaemon
) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n", "a/b": "x\n"})
    daemon = make_daemon(docker=HOST_NETWORK)
    daemon.start()
    await ran(fake.add_job(with_sources(fake, commit, 1, [PLANTS[plant], "rm README; echo y > a/b", f"rm -f {PWNED}"])))
    second = await ran(fake.add_job(with_sources(fake, commit, 2, ["cat README a/b", f"test ! -e {PWNED}"])))
    assert "hello\nx\n" in second.log


async def test_links_in_the_place_of_directories_are_not_followed(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    """Neither the runner's files nor the sources land where a link of the last job points."""
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n", "a/b": "x\n"})
    daemon = make_daemon(docker=HOST_NETWORK)
    daemon.start()
    plant = [
        "mkdir -p /cache/tmp /cache/project /cache/a; touch /cache/project/keep",
        "cd ..; rm -rf app.tmp; ln -s /cache/tmp app.tmp",
        "rm -rf app/a; ln -s /cache/a app/a",
    ]
    await ended(fake.add_job(with_sources(fake, commit, 1, plant)))
    look = ["cat a/b", "find /cache/tmp /cache/a -mindepth 1", "ls /cache/project"]
    variables = {"SECRET_FILE": "secret"}
    payload = with_sources(fake, commit, 2, look, variables=variables)
    for entry in payload["variables"]:
        entry["file"] = entry["key"] == "SECRET_FILE"
    second = await ran(fake.add_job(payload))
    assert second.log.endswith("Job succeeded\x1b[0;m\n")
    shown = second.log[second.log.index("cat a/b") :]
    assert "\nx\n" in shown
    assert "\n/cache/tmp/" not in shown
    assert "\n/cache/a/" not in shown
    assert "\nkeep\n" in shown


async def test_project_that_is_a_link_is_not_followed(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    daemon = make_daemon(docker=HOST_NETWORK)
    daemon.start()
    plant = ["mkdir -p /cache/project; touch /cache/project/keep; cd ..; rm -rf app; ln -s /cache/project app"]
    await ended(fake.add_job(with_sources(fake, commit, 1, plant)))
    second = await ended(fake.add_job(with_sources(fake, commit, 2, ["cat README"], after_script=["ls /cache/project"])))
    assert "README" not in second.log[second.log.index("ls /cache/project") :].splitlines()


# 3: protected refs


async def test_job_of_an_unprotected_ref_gets_other_volumes(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    daemon.start()
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    await ran(fake.add_job(_of_ref(fake, commit, 1, ["touch /cache/from-merge-request; touch ../planted"], protected=False)))
    second = await ran(fake.add_job(_of_ref(fake, commit, 2, ["ls /cache ..; touch /cache/from-main"], protected=True)))
    assert "from-merge-request" not in second.log
    assert "planted" not in second.log
    third = await ran(fake.add_job(_of_ref(fake, commit, 3, ["ls /cache .."], protected=False)))
    assert "from-merge-request" in third.log
    assert "from-main" not in third.log


def _of_ref(fake: FakeCoordinator, commit: str, job_id: int, script: list[str], *, protected: bool) -> dict[str, Any]:
    payload = job_payload(job_id, script, variables={"GIT_STRATEGY": "none"})
    payload["git_info"] |= {**fake.git_info(commit), "protected": protected}
    return payload


# 4, 7: what containers know and may


async def test_runners_token_reaches_no_container(running: Callable[..., Any], client: docker.APIClient) -> None:
    daemon, _ = await running()
    for kind in ("build", "predefined", "service"):
        (container,) = made(client, daemon, kind)
        assert "glrt-lab" not in json.dumps(container)
        pid = container["State"]["Pid"]
        assert b"glrt-lab" not in Path(f"/proc/{pid}/environ").read_bytes()


async def test_service_sees_public_variables_only(running: Callable[..., Any], client: docker.APIClient) -> None:
    daemon, job = await running(variables={"PUBLIC": "yes"})
    (service,) = made(client, daemon, "service")
    environment = service["Config"]["Env"]
    assert "PUBLIC=yes" in environment
    assert not [entry for entry in environment if job.token in entry]


async def test_helper_cannot_be_used_to_get_out(running: Callable[..., Any], client: docker.APIClient) -> None:
    daemon, _ = await running("    privileged = false\n    cap_add = ['SYS_PTRACE']\n    devices = ['/dev/zero']\n")
    (helper,) = made(client, daemon, "predefined")
    host = helper["HostConfig"]
    assert (host["Privileged"], host["ReadonlyRootfs"]) == (False, True)
    assert not host["Devices"]
    assert "no-new-privileges" in host["SecurityOpt"]
    assert helper["Config"]["WorkingDir"] == "/"
    look = client.exec_create(helper["Id"], ["sh", "-c", "touch /usr/bin/git; grep -E '^(CapEff|NoNewPrivs)' /proc/self/status"])
    said = client.exec_start(look["Id"]).decode()
    assert "Read-only file system" in said
    assert "CapEff:\t000000000000003b\nNoNewPrivs:\t1\n" in said


async def test_helper_has_nothing_of_a_jobs_environment(running: Callable[..., Any], client: docker.APIClient) -> None:
    """Not what changes how programs run, and no secret."""
    evil = {"BASH_ENV": "/cache/evil", "ENV": "/cache/evil", "LD_PRELOAD": "/cache/evil.so", "TAR_OPTIONS": "--version"}
    daemon, job = await running(variables=evil)
    (helper,) = made(client, daemon, "predefined")
    names = {entry.partition("=")[0] for entry in helper["Config"]["Env"]}
    assert names <= {"PATH", "HOME", "TERM", "HOSTNAME", "container"}, "what the image has, and what an engine gives everybody"
    for entry in Path("/proc").iterdir():
        groups = entry / "cgroup"
        if entry.name.isdigit() and groups.exists() and helper["Id"] in groups.read_text():
            environment = (entry / "environ").read_bytes()
            assert b"/cache/evil" not in environment
            assert job.token.encode() not in environment


async def test_job_is_not_in_the_namespaces_of_the_helper(running: Callable[..., Any], client: docker.APIClient) -> None:
    daemon, _ = await running()
    (build,) = made(client, daemon, "build")
    look = client.exec_create(build["Id"], ["sh", "-c", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '"])
    said = client.exec_start(look["Id"]).decode()
    assert "sleep 600" in said
    assert "pyrunner" not in said


async def test_engine_is_out_of_the_jobs_reach(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    daemon.start()
    script = ["ls /var/run/docker.sock /run/docker.sock 2>&1 || true", "mount | grep -c docker.sock || true"]
    job = await ran(fake.add_job(job_payload(1, script)))
    assert job.log.count("No such file") == 2


# 5, 6: archives


async def test_artifact_behind_a_link_is_not_taken(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    """Neither the helper's own files nor those of other volumes."""
    daemon = make_daemon()
    daemon.start()
    script = ["echo secret > /cache/secret", "ln -s /etc etc; ln -s /cache out; ln -s /cache/secret link; echo fine > fine"]
    artifacts = [
        {"paths": ["etc/passwd", "out/secret", "fine"], "when": "always", "artifact_type": "archive", "artifact_format": "zip"}
    ]
    job = await ended(fake.add_job(job_payload(1, script, artifacts=artifacts)))
    (artifact,) = job.artifacts
    assert b"fine" in artifact.content
    assert b"passwd" not in artifact.content
    assert b"secret" not in artifact.content


async def test_cache_is_not_unpacked_through_a_link(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    daemon = make_daemon(docker=HOST_NETWORK)
    daemon.start()
    cache = [{"key": "k", "paths": ["c/"], "policy": "pull-push", "when": "always"}]
    pull = [{**cache[0], "policy": "pull"}]
    await ran(fake.add_job(with_sources(fake, commit, 1, ["mkdir c; echo cached > c/file"], cache=cache)))
    plant = ["mkdir -p /cache/outside", "rm -rf c; ln -s /cache/outside c", "echo /c >> .git/info/exclude; git config clean.x y"]
    variables = {"GIT_CLEAN_FLAGS": "none"}
    await ended(fake.add_job(with_sources(fake, commit, 2, plant, cache=pull, variables=variables)))
    look = ["ls -A /cache/outside"]
    third = await ended(fake.add_job(with_sources(fake, commit, 3, look, cache=pull, variables=variables)))
    assert "file" not in third.log[third.log.index("ls -A /cache/outside") :].splitlines()


# 8: volumes within volumes


@pytest.mark.parametrize("sources", [True, False], ids=["sources", "direct"])
async def test_volume_is_not_mounted_where_a_link_of_the_last_job_leads(
    fake: FakeCoordinator, make_daemon: MakeDaemon, sources: bool
) -> None:
    """Not over the programs of the helper, nor over those of the next job's image."""
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    daemon = make_daemon(docker=HOST_NETWORK, volumes='["/cache", "/cache/go/bin", "/builds/deep/er"]')
    daemon.start()
    plant = [
        f"printf '#!/bin/bash\\ntouch {PWNED}\\n' > /cache/go/bin/evil; chmod +x /cache/go/bin/evil",
        "cp $(command -v sh bash sleep) /cache/go/bin; for i in git tar mkdir cat ls; do ln -s evil /cache/go/bin/$i; done",
        "mv /cache/go /cache/gone; ln -s /usr /cache/go; mv /builds/deep /builds/gone; ln -s /etc /builds/deep",
    ]
    await ran(fake.add_job(with_sources(fake, commit, 1, plant)))
    look = [
        "pwd",
        f"test ! -e {PWNED}",
        "test ! -L /cache/go && test ! -e /usr/bin/evil && test ! -e /etc/er",
        "ls /cache/go/bin/evil",
    ]
    payload = with_sources(fake, commit, 2, [*look, "cat README"])
    if not sources:
        payload = job_payload(2, look, image={"name": "debian-git:local"}, variables={"GIT_STRATEGY": "none"})
    second = await ran(fake.add_job(payload))
    assert "\n/cache/go/bin/evil\n" in second.log
    assert ("\nhello\n" in second.log) == sources


# What a job writes


@pytest.mark.timeout(400)
@pytest.mark.parametrize("dies", [False, True], ids=["one daemon", "another daemon"])
async def test_script_that_floods_its_log_is_ended(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient, dies: bool
) -> None:
    """Before it fills the disk of the engine, which takes output many times faster than it gives it out; the log of the job
    is short and whole, and after_script runs."""
    daemon = make_daemon()
    daemon.start()
    payload = job_payload(1, ["echo begun; tr '\\0' x </dev/zero"], after_script=["echo after $CI_JOB_STATUS"])
    job = fake.add_job(payload)
    await until(lambda: len(made(client, daemon, "build")) == 1 and len(job.trace) > 100_000, 90)
    (build,) = made(client, daemon, "build")
    path, largest, began = Path(build["LogPath"]), 0, len(job.trace)
    while not job.ended.is_set():
        largest = max(largest, path.stat().st_size if path.exists() else 0)
        if dies and len(job.trace) > began:
            dies = False
            daemon.kill()
            daemon.start()
        await asyncio.sleep(0.1)
    assert (job.state, job.failure_reason, job.exit_code) == ("failed", "script_failure", 137), job.log[-2000:]
    assert "script wrote too much and is ended" in daemon.log
    assert "Job's log exceeded limit of 4194304 bytes" in job.log
    assert job.log_is_whole()
    assert 256 * MIB < largest < 1536 * MIB


# Names and labels


async def test_job_cannot_hide_its_containers(running: Callable[..., Any], client: docker.APIClient) -> None:
    """Labels from a job's variables do not replace those that the runner finds its containers by."""
    labels = "    container_labels = { 'com.gitlab.pyrunner.state' = '$EVIL', 'com.gitlab.gitlab-runner.type' = '$EVIL' }\n"
    daemon, _ = await running(labels, variables={"EVIL": "hidden"})
    assert len(made(client, daemon, "build")) == 1


async def test_programs_that_a_job_left_behind_are_not_run(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    """Neither those in a volume that a variable of the next job puts in front."""
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n"})
    daemon = make_daemon(docker=HOST_NETWORK)
    daemon.start()
    names = "git tar mkdir rm find chmod cat"
    plant = [f"printf '#!/bin/sh\\ntouch {PWNED}\\n' > /cache/evil; chmod +x /cache/evil"]
    plant.append(f"cd /cache; for i in {names}; do ln -sf evil $i; done")
    await ran(fake.add_job(with_sources(fake, commit, 1, plant)))
    variables = {"PATH": "/cache:/usr/bin:/bin", "TAR_OPTIONS": "--checkpoint=1 --checkpoint-action=exec=/cache/evil"}
    cache = [{"key": "k", "paths": ["README"], "policy": "pull-push", "when": "always"}]
    script = [f"test ! -e {PWNED} && /bin/cat README"]
    second = await ran(fake.add_job(with_sources(fake, commit, 2, script, variables=variables, cache=cache)))
    assert "hello" in second.log
    third = await ran(fake.add_job(with_sources(fake, commit, 3, script)))
    assert "hello" in third.log

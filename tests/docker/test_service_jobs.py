"""Jobs with services, networks and users of their own: what their log says and their scripts see."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import docker
import pytest

from tests.docker import images
from tests.docker.conftest import state_filter
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload

pytestmark = pytest.mark.docker

MakeDaemon = Callable[..., Daemon]
SERVE = "mkdir /w; echo svc-$GREETING > /w/index.html; exec httpd -f -p 8080 -h /w"
WEB: dict[str, Any] = {
    "name": "gold-exposed:local",
    "alias": "web",
    "entrypoint": ["sh", "-c"],
    "command": [SERVE],
    "variables": [{"key": "GREETING", "value": "hey $CI_JOB_ID", "public": True}],
}


@pytest.fixture(scope="module", autouse=True)
def exposed(client: docker.APIClient) -> str:
    """An image that exposes a port."""
    return images.make(client, "gold-exposed:local", images.busybox(), ["EXPOSE 8080", 'CMD ["sh"]'])


async def ended(job: Job, timeout_s: float = 90.0) -> Job:
    async with asyncio.timeout(timeout_s):
        await job.ended.wait()
    return job


def lines(job: Job) -> list[str]:
    """The lines of a log without colours."""
    return re.sub(r"\x1b\[[0-9;]*[mK]|section_\w+:\d+:\w+\r", "", job.log).splitlines()


async def test_script_finds_its_service_ready(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    daemon.start()
    job = await ended(fake.add_job(job_payload(7, ["wget -qO- http://web:8080/ http://gold-exposed:8080/"], services=[WEB])))
    assert job.state == "success", job.log
    said = lines(job)
    assert said.count("svc-hey 7") == 2
    first = said.index("Starting service gold-exposed:local...")
    waiting = said.index("Waiting for services to be up and running (timeout 30 seconds)...")
    image = said.index("Using effective pull policy of [if-not-present] for container busybox:local")
    assert first < waiting < image < said.index("Preparing environment")


async def test_service_without_a_port_does_not_hold_the_job_up(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(docker="    wait_for_services_timeout = 3600\n")
    daemon.start()
    service = {"name": "busybox:local", "alias": "x", "command": ["sleep", "600"]}
    job = await ended(fake.add_job(job_payload(1, ["echo ran"], services=[service])))
    assert job.state == "success", job.log
    (warning,) = [line for line in lines(job) if "probably didn't start properly" in line]
    assert warning.startswith("*** WARNING: Service runner-lab-project-9-concurrent-0-")


async def test_the_first_words_of_a_service_that_is_slow_to_speak_are_shown(
    fake: FakeCoordinator, make_daemon: MakeDaemon
) -> None:
    """One that is of the image of the job: the engine is asked for it once, and the service is told of it."""
    service = {"name": "busybox:local", "entrypoint": ["sh", "-c"], "command": ["sleep 0.4; echo first words; exit 3"]}
    job = fake.add_job(job_payload(1, ["echo ran"], services=[service], variables={"GIT_STRATEGY": "none"}))
    make_daemon().start()
    assert (await ended(job)).state == "success"
    assert "first words" in job.log
    found = 'Using locally found image version due to "if-not-present" pull policy'
    assert job.log.count(found) == 1
    assert job.log.index("Starting service busybox:local") < job.log.index(found) < job.log.index("Waiting for services")


async def test_everything_of_a_job_with_its_own_network_goes(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient
) -> None:
    daemon = make_daemon(docker="    network_mtu = 1300\n")
    daemon.start()
    script = ["wget -qO- http://web:8080/; cat /sys/class/net/eth0/mtu", "echo net=[$CI_BUILD_NETWORK_NAME]"]
    job = await ended(fake.add_job(job_payload(8, script, services=[WEB], variables={"FF_NETWORK_PER_BUILD": "true"})))
    assert job.state == "success", job.log
    assert {"svc-hey 8", "1300", "net=[runner-lab-9-0-8]"} <= set(lines(job))
    await daemon.stop()
    assert client.networks(filters=state_filter(daemon)) == []
    assert client.containers(all=True, filters=state_filter(daemon)) == []


async def test_configured_network_beats_the_flag(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(docker='    network_mode = "bridge"\n')
    daemon.start()
    script = ["wget -qO- http://web:8080/; ls /sys/class/net"]
    job = await ended(fake.add_job(job_payload(18, script, services=[WEB], variables={"FF_NETWORK_PER_BUILD": "true"})))
    assert job.state == "success", job.log
    assert "svc-hey 18" in lines(job)


async def test_services_that_are_not_allowed_are_named(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(docker='    allowed_services = ["postgres:*"]\n')
    daemon.start()
    job = await ended(fake.add_job(job_payload(1, ["echo ran"], services=[WEB])))
    assert job.state == "failed"
    said = lines(job)
    at = said.index('ERROR: The "gold-exposed:local" image is not present on list of allowed services:')
    assert said[at + 1] == "- postgres:*"
    assert said[-1] == "ERROR: Job failed: disallowed image"


async def test_too_many_services_fail_the_job(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(docker="    services_limit = 1\n")
    daemon.start()
    job = await ended(fake.add_job(job_payload(1, ["echo ran"], services=[WEB, WEB])))
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure")
    assert lines(job).count("ERROR: Preparation failed: too many services requested: 2, only 1 allowed") == 3


async def test_services_of_the_configuration_run_beside_every_job(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    configured = f"""
    [[runners.docker.services]]
      name = "gold-exposed:local"
      alias = "cfg"
      entrypoint = ["sh", "-c"]
      command = ["{SERVE}"]
      environment = ["GREETING=for $CI_JOB_NAME"]
"""
    daemon = make_daemon(docker=configured)
    daemon.start()
    job = await ended(fake.add_job(job_payload(1, ["wget -qO- http://cfg:8080/"], variables={"CI_JOB_NAME": "unit"})))
    assert job.state == "success", job.log
    assert "svc-for unit" in lines(job)


async def test_log_of_services_is_shown_while_the_script_runs(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient
) -> None:
    daemon = make_daemon(docker="    wait_for_services_timeout = -1\n")
    daemon.start()
    script = ["echo begun; while [ ! -e /cache/go ]; do sleep 0.1; done; echo over"]
    say = "echo at the start; while [ ! -e /cache/say ]; do sleep 0.1; done; echo later; exec sleep 600"
    service = {**WEB, "command": [say]}
    job = fake.add_job(job_payload(1, script, services=[service], variables={"CI_DEBUG_SERVICES": "true"}))
    pattern = re.compile(r"\x1b\[0;37m\[service:gold-exposed-web\] 20\S+Z (.*)\x1b\[0;m\n")

    def shown() -> list[str]:
        return pattern.findall(job.log)

    def touch(path: str) -> None:
        filters = {"label": [*state_filter(daemon)["label"], "com.gitlab.gitlab-runner.type=service"]}
        (found,) = client.containers(filters=filters)
        client.exec_start(client.exec_create(found["Id"], ["touch", path])["Id"])

    await fake.until(lambda: shown() == ["at the start"] and "begun\n" in job.log, 90)
    touch("/cache/say")
    await fake.until(lambda: shown() == ["at the start", "later"], 90)
    touch("/cache/go")
    await ended(job)
    assert job.state == "success", job.log
    assert "over" in lines(job)


@pytest.mark.parametrize("image", ["busybox:local", "debian-git:local"])
@pytest.mark.parametrize("deaths", [1, 3])
async def test_log_of_services_goes_on_with_another_daemon(
    fake: FakeCoordinator, make_daemon: MakeDaemon, client: docker.APIClient, deaths: int, image: str
) -> None:
    """Each line once, whatever died in between, and nothing of the script's output is lost by it."""
    daemon = make_daemon(docker="    wait_for_services_timeout = -1\n")
    daemon.start()
    count = "i=0; while [ ! -e /cache/over ]; do i=$((i+1)); echo {name} $i; {pause}; done; echo {name} end $i"
    service = {**WEB, "command": [count.format(name="svc", pause="sleep 0.02") + "; touch /cache/told; exec sleep 600"]}
    script = [count.format(name="own", pause="sleep 0.05"), "until [ -e /cache/told ]; do sleep 0.1; done; printf 'no end'"]
    payload = job_payload(1, script, services=[service], variables={"CI_DEBUG_SERVICES": "true"}, image={"name": image})
    job = fake.add_job(payload)
    for _ in range(deaths):
        before = len(job.trace)
        await fake.until(lambda before=before: job.log.count("] 20") > 10 and len(job.trace) > before + 2000, 90)
        daemon.kill()
        daemon.start()
    before = len(job.trace)
    await fake.until(lambda: len(job.trace) > before + 2000, 90)
    daemon.kill()
    labels = [*state_filter(daemon)["label"], "com.gitlab.gitlab-runner.type=build"]
    (build,) = client.containers(filters={"label": labels})
    client.exec_start(client.exec_create(build["Id"], ["touch", "/cache/over"])["Id"])
    client.wait(build["Id"], timeout=60)
    daemon.start()
    await ended(job)
    assert job.state == "success", job.log + daemon.log
    assert job.log_is_whole()
    assert b"no end" in job.trace
    for name in ("svc", "own"):
        said = [int(number) for number in re.findall(rf"{name} (\d+)(?:\x1b\[0;m)?$", job.log, re.MULTILINE)]
        (last,) = re.findall(rf"{name} end (\d+)(?:\x1b\[0;m)?$", job.log, re.MULTILINE)
        assert said == list(range(1, int(last) + 1)), name


async def test_kept_anonymous_volumes_are_announced(fake: FakeCoordinator, make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(docker="    volume_keep = true\n")
    daemon.start()
    job = await ended(fake.add_job(job_payload(1, ["echo ran"])))
    assert job.state == "success", job.log
    text = "WARNING: volume_keep is enabled: Docker volumes will not be removed after job completion and may accumulate on disk"
    assert text in lines(job)


# Users

HOST_NETWORK = '    network_mode = "host"\n'


@pytest.fixture(scope="module")
def of_user(client: docker.APIClient) -> str:
    """An image with a user of its own."""
    return images.make(client, "pyrunner-test-user:1500", images.busybox(), ["USER 1500", 'CMD ["sh"]'])


def with_sources(fake: FakeCoordinator, image: str, script: list[str], **variables: str) -> dict[str, Any]:
    commit = git_server.make_repository(fake.repositories, "app", {"README": "hello\n", "run.sh": "true\n"})
    payload = job_payload(1, script, variables=variables, image={"name": image})
    payload["variables"] = [entry for entry in payload["variables"] if entry["key"] != "GIT_STRATEGY"]
    payload["git_info"] |= fake.git_info(commit)
    return payload


async def test_user_of_an_image_can_write_everywhere(fake: FakeCoordinator, make_daemon: MakeDaemon, of_user: str) -> None:
    daemon = make_daemon(docker=HOST_NETWORK)
    daemon.start()
    script = ["id -u; echo more >> README; touch new .. /cache/x; stat -c '%u %a %n' README . .git /cache"]
    job = await ended(fake.add_job(with_sources(fake, of_user, script)))
    assert job.state == "success", job.log
    assert {"1500", "0 666 README", "0 777 .", "0 777 .git", "0 777 /cache"} <= set(lines(job))


async def test_sources_belong_to_the_user_of_an_image_without_umask(
    fake: FakeCoordinator, make_daemon: MakeDaemon, of_user: str
) -> None:
    daemon = make_daemon(docker=HOST_NETWORK)
    daemon.start()
    script = ["id -u; echo more >> README; touch new; stat -c '%u:%g %a %n' README . .git", "cat $SECRET; echo"]
    payload = with_sources(fake, of_user, script, FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR="true", SECRET="secret text")
    for entry in payload["variables"]:
        entry["file"] = entry["key"] == "SECRET"
    job = await ended(fake.add_job(payload))
    assert job.state == "success", job.log
    said = lines(job)
    assert {"1500", "1500:0 644 README", "1500:0 755 .", "1500:0 755 .git", "secret text"} <= set(said)
    at = said.index('Changing ownership of files at "/builds/git/app" to 1500:0')
    assert said[at + 1] == 'Changing ownership of files at "/builds/git/app.tmp" to 1500:0'
    assert said.index("Not using umask - FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR is set!") < said.index("Preparing environment") < at


async def test_configured_user_on_an_image_of_root_cannot_write_without_umask(
    fake: FakeCoordinator, make_daemon: MakeDaemon
) -> None:
    daemon = make_daemon(docker=HOST_NETWORK + '    user = "1000"\n')
    daemon.start()
    payload = with_sources(fake, "busybox:local", ["id -u; touch new"], FF_DISABLE_UMASK_FOR_DOCKER_EXECUTOR="true")
    job = await ended(fake.add_job(payload))
    assert (job.state, job.exit_code) == ("failed", 1), job.log
    assert "Permission denied" in job.log

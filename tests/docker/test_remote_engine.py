"""An engine on another host, over TLS: it sees no directory of the daemon's."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import docker
import pytest

from executors.docker.client import Engine
from executors.docker.connection import Connection
from executors.docker.errors import EngineUnreachable
from executors.errors import PrepareError
from tests.contract.test_tls import Authority
from tests.docker import images
from tests.docker.conftest import keeping_job, remove_leftovers, state_filter
from tests.docker.own_engine import engine_of_its_own, free_port
from tests.docker.test_jobs import ended
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload

# One engine is enough for all of them.
pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("remote")]


@dataclass(frozen=True, slots=True)
class Remote:
    """An engine that listens with TLS. ``certificates`` is a client's folder, ``others`` one of somebody else's."""

    host: str
    socket: str
    client: docker.APIClient
    certificates: Path
    others: Path


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Remote]:
    ours, theirs = (Authority(tmp_path_factory.mktemp(name), name) for name in ("ours", "theirs"))
    port = free_port()
    with (
        tempfile.TemporaryDirectory(prefix="pyr-") as place,
        engine_of_its_own(
            ["-H", f"tcp://127.0.0.1:{port}", *_server(ours, Path(place))], tmp_path_factory.getbasetemp()
        ) as engine,
    ):
        client = engine.start()
        images.make(client, "busybox:local", images.busybox(), ['CMD ["sh"]'])
        yield Remote(f"tcp://127.0.0.1:{port}", engine.host, client, folder(ours, "client"), folder(theirs, "other"))
        client.close()


def _server(authority: Authority, place: Path) -> list[str]:
    """Flags of an engine with a certificate; it cannot read the folders of tests."""
    for source, name in zip((authority.ca, *authority.issue("engine")), ("ca", "cert", "key"), strict=True):
        shutil.copy(source, place / name)
    return ["--tlsverify", f"--tlscacert={place}/ca", f"--tlscert={place}/cert", f"--tlskey={place}/key"]


def folder(authority: Authority, name: str) -> Path:
    """What ``tls_cert_path`` names: the authority with a client's certificate."""
    certificate, key = authority.issue(name, "extendedKeyUsage=clientAuth")
    found = authority.root / "certificates"
    found.mkdir()
    for source, target in ((authority.ca, "ca.pem"), (certificate, "cert.pem"), (key, "key.pem")):
        shutil.copy(source, found / target)
    return found


@pytest.fixture
async def engine_with() -> AsyncIterator[Callable[..., Engine]]:
    made: list[Engine] = []

    def make(host: str, certificates: Path | None) -> Engine:
        made.append(Engine(Connection(host=host, certificates=certificates)))
        return made[-1]

    yield make
    for engine in made:
        await engine.close()


async def test_a_job_with_sources_cache_and_artifacts(
    remote: Remote, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    """Nothing but the connection is shared; what needs more, the stores of Go, says that it is left out."""
    sha = git_server.make_repository(fake.repositories, "app", {"README": "hi\n"})
    keys = f'    host = "{remote.host}"\n    tls_verify = true\n    tls_cert_path = "{remote.certificates}"'
    daemon = make_daemon(docker=f"{keys}\n  [runners.go]\n")
    daemon.start()
    sums = []
    try:
        for number in (1, 2):
            payload = keeping_job(number, fake.git_info(sha), "clone", after_script=["echo after"])
            job = await ended(fake.add_job(payload))
            assert job.state == "success", job.log + daemon.log
            assert "\nhi\n" in job.log
            assert [artifact.kind for artifact in job.artifacts] == ["archive"]
            assert f"the Docker engine at {remote.host} does not see the directories of the runner" in job.log
            sums.append(next(line for line in job.log.splitlines() if line.endswith("  c/big")))
            if number == 2:
                assert "\n1\n2\n" in job.log
                assert sums[0] == sums[1]
            assert "\nafter\n" in job.log
        await daemon.stop()
        assert remote.client.containers(all=True, filters=state_filter(daemon)) == []
    finally:
        remove_leftovers(remote.client, daemon)


async def test_the_environment_of_the_daemon_names_engine_and_certificates(
    remote: Remote, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon(docker='    tls_cert_path = "/nonexistent"')
    daemon.environment |= {"DOCKER_HOST": remote.host, "DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(remote.certificates)}
    # Not meant for the engine.
    daemon.environment["REQUESTS_CA_BUNDLE"] = str(remote.others / "ca.pem")
    daemon.start()
    try:
        job = await ended(fake.add_job(job_payload(1, ["echo there"])))
        assert job.state == "success", job.log + daemon.log
        assert "\nthere\n" in job.log
    finally:
        await daemon.stop()
        remove_leftovers(remote.client, daemon)


async def test_a_forwarded_socket_shares_no_directories(
    remote: Remote, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon(docker=f'    host = "{remote.socket}"\n  [runners.go]\n')
    daemon.start()
    try:
        job = await ended(fake.add_job(job_payload(1, ["echo there"])))
        assert job.state == "success", job.log + daemon.log
        said = f"the Docker engine at {remote.socket}, which runs on elsewhere, does not see the directories of the runner"
        assert said in job.log
    finally:
        await daemon.stop()
        remove_leftovers(remote.client, daemon)


async def test_a_follower_of_a_killed_daemon_goes_on(
    remote: Remote, fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """A connection with TLS has no half to close: the script ends its input itself."""
    keys = f'    host = "{remote.host}"\n    tls_verify = true\n    tls_cert_path = "{remote.certificates}"'
    daemon = make_daemon(docker=keys)
    daemon.start()
    try:
        job = fake.add_job(job_payload(1, ["echo begun; sleep 4; echo done; exit 3"]))
        await fake.until(lambda: "begun\n" in job.log, 120)
        daemon.kill()
        daemon.start()
        await ended(job)
        assert (job.state, job.exit_code) == ("failed", 3), job.log + daemon.log
        assert job.log_is_whole()
        assert job.log.count("begun\n") == job.log.count("done\n") == 1
    finally:
        await daemon.stop()
        remove_leftovers(remote.client, daemon)


async def test_an_engine_of_another_authority_is_not_trusted(remote: Remote, engine_with: Callable[..., Engine]) -> None:
    engine = engine_with(remote.host, remote.others)
    with pytest.raises(EngineUnreachable, match=r"certificate verify failed") as caught:
        await engine.call(lambda client: client.version())
    assert remote.host in str(caught.value)


async def test_a_client_of_another_authority_is_told(remote: Remote, engine_with: Callable[..., Engine], tmp_path: Path) -> None:
    for name, source in (("ca.pem", remote.certificates), ("cert.pem", remote.others), ("key.pem", remote.others)):
        shutil.copy(source / name, tmp_path / name)
    engine = engine_with(remote.host, tmp_path)
    with pytest.raises(EngineUnreachable, match=f"certificates of one authority, those in {tmp_path}") as caught:
        await engine.call(lambda client: client.version())
    assert f"error during connect to the docker API at {remote.host}: " in str(caught.value)


async def test_plain_http_to_an_engine_with_tls_is_told(remote: Remote, engine_with: Callable[..., Engine]) -> None:
    engine = engine_with(remote.host, None)
    with pytest.raises(PrepareError, match="Client sent an HTTP request to an HTTPS server"):
        await engine.call(lambda client: client.version())


async def test_certificates_that_are_missing_are_named(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = make_daemon(docker=f'    host = "tcp://127.0.0.1:1"\n    tls_verify = true\n    tls_cert_path = "{tmp_path}"')
    daemon.start()
    job = await ended(fake.add_job(job_payload(1, ["true"])))
    assert (job.state, job.failure_reason) == ("failed", "runner_system_failure"), job.log
    assert f"the TLS files of the Docker engine in {tmp_path} cannot be used" in job.log
    assert "ca.pem" in job.log


async def test_streams_over_tls(remote: Remote, engine_with: Callable[..., Engine]) -> None:
    """Programs in a container, their input and output: from the loop and from threads."""
    engine = engine_with(remote.host, remote.certificates)
    name = f"pyrunner-test-{uuid.uuid4().hex[:12]}"
    made = remote.client.create_container("busybox:local", ["sh"], name=name, stdin_open=True)["Id"]
    try:
        attached = await engine.hijack(
            f"/containers/{made}/attach", params={"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"}
        )
        await engine.call(lambda client: client.start(made))
        await attached.send(b"head -c 3000000 /dev/zero | wc -c; exit\n")
        assert not attached.end_input()
        assert b"".join([data async for _, data in attached.frames()]) == b"3000000\n"
        attached.close()
        assert (await asyncio.to_thread(remote.client.wait, made))["StatusCode"] == 0
    finally:
        remote.client.remove_container(made, force=True)

"""Recorded jobs about images, replayed: names, lists, policies, registries and credentials."""

from __future__ import annotations

import base64
import fnmatch
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import docker
import pytest

from executors.docker.client import Engine
from executors.docker.helper_image import HelperImages
from tests.contract import golden
from tests.contract.replay import replay
from tests.docker import images, registry
from tests.docker.differences import IMAGES_DIFFER
from tests.docker.registry import PASSWORD, USER

NAMES = """
image-* pull-* policy-* config-policy-unknown allowed-images-negation helper-image-* service-not-allowed
service-configured-allows-name service-pull-policy
"""
RECORDED_HELPER = "sha256:387189eed66357b618e51f2b25291f0b395f35fd6fe64bb7b44bb296e29bd961"
HELPER = "glr-helper:local"
NEEDS_REGISTRY = ("{REGISTRY}", "{AUTH_REGISTRY}")
LOCAL = ("lab/web-app:local", "127.0.0.1:9/gold/local:1")
pytestmark = [
    pytest.mark.docker,
    pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT),
    pytest.mark.timeout(200),
    pytest.mark.usefixtures("replayed"),
]


def cases() -> list[str]:
    return [name for name in golden.scenarios("docker") if any(fnmatch.fnmatch(name, pattern) for pattern in NAMES.split())]


@pytest.fixture
def registries(
    client: docker.APIClient, busybox: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[dict[str, str]]:
    """The two registries of the recordings, where one of them is needed."""
    text = json.dumps(golden.read("docker", request.node.callspec.params["name"]))
    if not any(name in text for name in NEEDS_REGISTRY):
        yield {}
        return
    with (
        registry.serving(tmp_path / "open") as opened,
        registry.serving(tmp_path / "private", with_accounts=True) as private,
    ):
        for tag in ("1", "latest"):
            registry.push(client, busybox, f"{opened}/gold/app:{tag}")
        for path in ("ns/app", "ns/deep/app"):
            registry.push(client, busybox, f"{private}/{path}:1", login=(USER, PASSWORD))
        yield {"REGISTRY": opened, "AUTH_REGISTRY": private}
        for host in (opened, private):
            registry.forget(client, host)


@pytest.fixture
async def helper(engine: Engine, client: docker.APIClient) -> str:
    """The id of the image that has the name of the recordings' helper; the one of this host is there, too."""
    await HelperImages(engine).own()
    images.make(client, HELPER, images.debian(), ['CMD ["bash"]'])
    about: Any = client.inspect_image(HELPER)  # type: ignore[no-untyped-call]
    return str(about["Id"])


@pytest.mark.parametrize("name", cases())
async def test_ends_and_logs_as_the_reference(
    name: str,
    client: docker.APIClient,
    busybox: str,
    debian: str,
    helper: str,
    registries: dict[str, str],
    tmp_path: Path,
) -> None:
    for local in LOCAL:
        repository, _, tag = local.rpartition(":")
        client.tag(busybox, repository, tag)
    scenario = golden.fill(golden.read("docker", name), registries)
    scenario["config_toml"] = scenario["config_toml"].replace(RECORDED_HELPER, helper)
    if name == "pull-auth-home-config":
        scenario["environment"] = {"HOME": "{ROOT}"}
        scenario["helper_files"] = {"{ROOT}/.docker/config.json": _login(registries["AUTH_REGISTRY"], "file-user:fp")}
    difference = IMAGES_DIFFER.get(name)
    done = await replay(scenario, tmp_path, timeout_s=150, ends=difference.ends if difference else ())
    for number, (entry, job) in enumerate(zip(scenario["jobs"], done.jobs, strict=True)):
        ends = (entry["state"], entry["failure_reason"], entry["exit_code"])
        if difference is not None and difference.ends:
            ends = difference.ends[number]
        assert (job.state, job.failure_reason, job.exit_code) == ends, job.log + done.daemon_log
        if difference is None or difference.log:
            expected, got = (_lines(log, places) for log, places in ((entry["trace"], {}), (job.log, done.places)))
            assert golden.same(expected, got), golden.difference(expected, got)
        for secret in ("vp", "fp", PASSWORD):
            assert f":{secret}" not in job.log + done.daemon_log


def _login(host: str, account: str) -> str:
    return json.dumps({"auths": {host: {"auth": base64.b64encode(account.encode()).decode()}}})


_VARIES = (
    (re.compile(r"sha256:[0-9a-f]{64}"), "sha256:ID"),
    # The digest that the engine knows an image by depends on what was pulled before.
    (re.compile(r" with digest \S+ \.\.\."), " ..."),
    (re.compile(r" \([a-z_]+\.go:\d+:\d+s\)"), ""),
    (re.compile(r"concurrent-0-[0-9a-f]{16}"), "concurrent-0-ATTEMPT"),
    # What the reference does to networks.
    (re.compile(r"\x1b\[32;1mContainer \S+ disconnected from network \S+\x1b\[0;m\n"), ""),
    (re.compile(r"\x1b\[31;1mERROR: Failed to remove network for build\x1b\[0;m\n"), ""),
)
_OF_HELPER = re.compile(r"[Uu]sing helper image|(container|for) glr-helper:local|container sha256:ID")


def _lines(log: str, places: dict[str, str]) -> list[str]:
    for pattern, text in _VARIES:
        log = pattern.sub(text, log)
    return _without_helper(golden.normalised(log, places))


def _without_helper(lines: list[str]) -> list[str]:
    """Without the lines of the helper image, and what stands behind each of them about where it was found."""
    found: list[str] = []
    of_helper = False
    for line in lines:
        if _OF_HELPER.search(line):
            of_helper = "effective pull policy" in line
        elif not (of_helper and "Using locally found image" in line):
            found.append(line)
            of_helper = False
    return found

"""Docker jobs of the reference, replayed: the same state, reason, exit code and log, and the same build containers."""

from __future__ import annotations

import re
import uuid
from pathlib import Path
from typing import Any

import docker
import pytest

from tests.contract import golden
from tests.contract.replay import replay
from tests.docker import images, test_golden_images
from tests.docker.differences import ACTED, DIFFERS, NOT_YET

pytestmark = pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)

AREA = "docker"
_HELPER_LINES = re.compile(
    r"(?:TIME 00O )?(?:\x1b\[0K)?Using (?:helper image: |effective pull policy of \[[^]]*\] for container sha256:)"
)
# Of a container, with its id in /etc/hosts, or of a server.
_ADDRESS = re.compile(r"\b(?:172|192|127)\.\d+\.\d+\.\d+(?:\t[0-9a-f]{12}\b)?")
_RULES = (
    (re.compile(r"sha256:[0-9a-f]{64}"), "sha256:ID"),
    (re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z"), "MOMENT"),
    (re.compile(r" with digest \S+"), ""),  # other tests have pushed, and the recording had, the same image
    (re.compile(r"(drwx\S+) +\d+( .* \.git)$", re.MULTILINE), r"\1 N\2"),  # git-lfs makes a directory
    (re.compile(r" \([a-z_]+\.go:\d+:\d+s\)"), ""),
    (re.compile(r"^ +(?!1 )\d+(?= root +)", re.MULTILINE), "   PID"),  # of all but the first process: the engine's matter
    (re.compile(r"concurrent-0-[0-9a-f]{16}"), "concurrent-0-ATTEMPT"),
    (re.compile(r"runner-[0-9a-f]{32}-cache"), "runner-STORE-cache"),
    (re.compile(r"(Reini|Ini)tialized (existing|empty) Git repository"), "Initialized Git repository"),
    (re.compile(r"\x1b\[31;1mERROR: Failed to remove network for build\x1b\[0;m\n"), ""),
    (re.compile(r"\x1b\[32;1mContainer \S+ disconnected from network \S+\x1b\[0;m\n"), ""),
)


def cases() -> list[object]:
    found: list[object] = []
    about_images = set(test_golden_images.cases())
    for name in golden.scenarios(AREA):
        scenario = golden.read(AREA, name)
        reason = NOT_YET.get(name, "")
        if name in about_images:
            continue
        if (scenario.get("server") or {}).get("acted"):
            reason = ACTED
        marks = [pytest.mark.skip(reason=reason)] if reason else []
        found.append(pytest.param(name, id=name, marks=marks))
    return found


@pytest.fixture(scope="session")
def recorded_images(client: docker.APIClient, busybox: str, debian: str) -> dict[str, str]:
    """The images that the recordings name; the helper's by its id, too."""
    plain = images.busybox()
    images.make(client, "gold-noshell:local", images.empty(), ['CMD ["/none"]'])
    images.make(client, "gold-exposed:local", plain, ["EXPOSE 8080", 'CMD ["sh"]'])
    images.make(client, "gold-user:local", plain, ["USER 1000", 'CMD ["sh"]'])
    entry = images.busybox()
    entry.text("entry.sh", '#!/bin/sh\nexport FROM_ENTRYPOINT=yes\nexec "$@"\n', 0o755)
    images.make(client, "gold-entry:local", entry, ['ENTRYPOINT ["/entry.sh"]', 'CMD ["sh"]'])
    images.make(client, "glr-helper:local", images.debian(), ['CMD ["bash"]'])
    about: Any = client.inspect_image("glr-helper:local")  # type: ignore[no-untyped-call]
    return {"helper": str(about["Id"])}


def normalised(log: str, places: dict[str, str]) -> list[str]:
    """Lines of a log without what varies, without the lines of the helper's image and the engine client's file names."""
    for pattern, replacement in _RULES:
        log = pattern.sub(replacement, log)
    lines = [_ADDRESS.sub("ADDRESS", line) for line in golden.normalised(log, places)]
    kept: list[str] = []
    for before, line in zip(["", *lines], lines, strict=False):
        is_of_helper = "glr-helper:local" in line or _HELPER_LINES.match(line)
        # The reference looks for its helper in every job, and its helper has git-lfs, which prints an empty line.
        is_found = "Using locally found image" in line and "glr-helper:local" in before
        is_of_lfs = not line and ("Checking out SHA" in before or before.startswith("Removing "))
        if not (is_of_helper or is_found or is_of_lfs):
            kept.append(line)
    return kept


@pytest.mark.timeout(200)
@pytest.mark.usefixtures("replayed")
@pytest.mark.parametrize("name", cases())
async def test_ends_and_logs_as_the_reference(
    name: str, tmp_path: Path, gateway: str, recorded_images: dict[str, str], client: docker.APIClient
) -> None:
    scenario = golden.read(AREA, name)
    helper = r"sha256:387189eed66357b618e51f2b25291f0b395f35fd6fe64bb7b44bb296e29bd961"
    scenario["config_toml"] = scenario["config_toml"].replace(helper, recorded_images["helper"])
    difference = DIFFERS.get(name)
    done = await replay(
        scenario,
        tmp_path,
        timeout_s=150,
        ends=difference.ends if difference else (),
        address=gateway,
        own_keys=f'system_id = "s_{uuid.uuid4().hex[:12]}"\n',
    )
    for number, (entry, job) in enumerate(zip(scenario["jobs"], done.jobs, strict=True)):
        ends = (entry["state"], entry["failure_reason"], entry["exit_code"])
        if difference is not None and difference.ends:
            ends = difference.ends[number]
        assert (job.state, job.failure_reason, job.exit_code) == ends, job.log + done.daemon_log
        if difference is None:
            expected = normalised(entry["trace"], {})
            got = normalised(job.log, done.places)
            assert golden.same(expected, got), golden.difference(expected, got)


def test_the_list_of_differences_names_recordings_only() -> None:
    known = set(golden.scenarios(AREA))
    assert set(DIFFERS) <= known
    assert set(NOT_YET) <= known

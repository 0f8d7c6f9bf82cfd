"""Artifacts of the reference, replayed: what is sent, what is in it, what is asked for, and the log."""

from __future__ import annotations

import base64
import io
import re
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.contract import golden
from tests.contract.differences import ARTIFACT_DIFFERS, ARTIFACT_NOT_REPLAYED
from tests.contract.replay import Replay, replay
from tests.fakes.job import Artifact

pytestmark = pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
SPECIAL_LINE = ": sockets, FIFOs and devices are not archived"
FORM = ("artifact_format", "artifact_type", "expire_in")


def cases() -> list[Any]:
    found = []
    for area in ("files", "wire"):
        for name in golden.scenarios(area):
            if name.startswith("artifact-"):
                late = ARTIFACT_NOT_REPLAYED.get(name)
                marks = [pytest.mark.skip(reason=late)] if late else []
                found.append(pytest.param(area, name, id=f"{area}/{name}", marks=marks))
    return found


def entries(content: bytes) -> list[Any]:
    """Name, mode and size of what is in a zip; of links the target's length."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return sorted([info.filename, oct(info.external_attr >> 16), info.file_size] for info in archive.infolist())


def recorded_entries(artifact: dict[str, Any]) -> list[Any]:
    return sorted([entry[0], entry[1], *entry[3:]] for entry in artifact["entries"])


def unquoted(file_name: str) -> str:
    return re.sub(r"\\(.)", r"\1", file_name)


def is_same_content(expected: dict[str, Any], got: Artifact) -> bool:
    if expected.get("entries") is not None and expected["query"].get("artifact_format") != "tarzstd":
        recorded = recorded_entries(expected)
        return recorded == [entry[: len(recorded[0])] for entry in entries(got.content)]
    if expected["query"].get("artifact_format") == "raw" and "base64" in expected:
        return base64.b64decode(expected["base64"]) == got.content
    return bool(got.content)


def requests(found: list[Any], places: dict[str, str]) -> list[Any]:
    """Method, path, query and status of everything that moves artifacts."""
    sequence = []
    for request in found:
        recorded = request if isinstance(request, dict) else vars(request)
        if re.search(r"/artifacts|/objects/|/elsewhere", recorded["path"]):
            query = recorded["query"].replace("+", " ").replace("%20", " ")
            sequence.append((recorded["method"], recorded["path"], query, recorded["status"]))
    return sequence


@pytest.mark.timeout(200)
@pytest.mark.parametrize(("area", "name"), cases())
async def test_artifacts_are_those_of_the_reference(area: str, name: str, tmp_path: Path) -> None:
    scenario = golden.read(area, name)
    difference = ARTIFACT_DIFFERS.get(name)
    done = await replay(scenario, tmp_path, timeout_s=150, ends=difference.ends if difference else ())
    ends = [(entry["state"], entry["failure_reason"], entry["exit_code"]) for entry in scenario["jobs"]]
    got_ends = [(job.state, job.failure_reason, job.exit_code) for job in done.jobs]
    assert got_ends == list((difference and difference.ends) or ends), done.daemon_log
    if difference is None or difference.uploads:
        check_uploads(scenario, done)
    # Of a table the recording keeps the first request only.
    if "table" not in scenario and (difference is None or difference.requests):
        assert requests(done.fake.requests, done.places) == requests(scenario["requests"], {})
    if difference is None or difference.log:
        for entry, job in zip(scenario["jobs"], done.jobs, strict=True):
            expected = golden.normalised(entry["trace"], {})
            got = [line for line in golden.normalised(job.log, done.places) if SPECIAL_LINE not in line]
            assert golden.same(expected, got), golden.difference(expected, got)


def check_uploads(scenario: dict[str, Any], done: Replay) -> None:
    for entry, job in zip(scenario["jobs"], done.jobs, strict=True):
        # An archive without entries is not sent.
        recorded = [artifact for artifact in entry["artifacts"] if artifact.get("entries") != []]
        assert [artifact["filename"] for artifact in recorded] == [unquoted(artifact.file_name) for artifact in job.artifacts]
        for expected, got in zip(recorded, job.artifacts, strict=True):
            assert {name: value for name, value in expected["query"].items() if name in FORM} == got.form
            assert is_same_content(expected, got), (expected.get("entries"), entries(got.content))


def test_the_list_of_differences_names_recordings_only() -> None:
    known = {name for area in ("wire", "files") for name in golden.scenarios(area)}
    assert set(ARTIFACT_DIFFERS) | set(ARTIFACT_NOT_REPLAYED) <= known

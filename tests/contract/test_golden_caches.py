"""Caches of the reference, replayed: the log, the archives that are left, and what a bucket sees."""

from __future__ import annotations

import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.contract import golden
from tests.contract.differences import CACHE_DIFFERS, CACHE_NOT_REPLAYED
from tests.contract.replay import Replay, replay

pytestmark = pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
# One name is tried where the reference looks for two, and one request asks for it.
ONE_NAME = "Selecting primary cache URL"
# Before which job the archives of this host were taken away.
LOST_BEFORE = {"cache-s3-save-and-restore": 2}


def cases() -> list[Any]:
    found = []
    for name in golden.scenarios("files"):
        if name.startswith("cache-"):
            late = CACHE_NOT_REPLAYED.get(name)
            found.append(pytest.param(name, id=name, marks=[pytest.mark.skip(reason=late)] if late else []))
    return found


def lines(log: str, places: dict[str, str]) -> list[str]:
    return [line for line in golden.normalised(log, places) if ONE_NAME not in line]


def bucket_requests(found: list[Any]) -> list[Any]:
    """What was brought and taken: the reference looks for two names beforehand."""
    sequence = []
    for request in found:
        about = request if isinstance(request, dict) else vars(request)
        if about["path"].startswith("/bkt/") and about["method"] != "HEAD" and about["status"] != 404:
            sequence.append((about["method"], about["path"], about["status"]))
    return sequence


def check_files(scenario: dict[str, Any], done: Replay) -> None:
    root = Path(done.places["ROOT"])
    recorded = {path: about for path, about in scenario["files"].items() if path.startswith("cache/") and about != "directory"}
    recorded = {path: about for path, about in recorded.items() if about.get("entries") != []}
    folders = {path.rpartition("/")[0] for path in recorded if path.endswith(".zip")}
    recorded = {path: about for path, about in recorded.items() if path.rpartition("/")[0] in folders}
    ours = [path for path in (root / "cache").rglob("*") if path.is_file()]
    assert sorted(str(path.relative_to(root)) for path in ours) == sorted(recorded)
    for path, about in recorded.items():
        assert oct((root / path).stat().st_mode & 0o777) == about["mode"]
        if about.get("entries") and zipfile.is_zipfile(root / path):
            with zipfile.ZipFile(root / path) as archive:
                entries = sorted([info.filename, oct(info.external_attr >> 16), info.file_size] for info in archive.infolist())
            assert entries == sorted([entry[0], entry[1], entry[3]] for entry in about["entries"])


@pytest.mark.timeout(200)
@pytest.mark.parametrize("name", cases())
async def test_caches_are_those_of_the_reference(name: str, tmp_path: Path) -> None:
    scenario = golden.read("files", name)
    difference = CACHE_DIFFERS.get(name)

    def act(number: int, root: Path) -> None:
        if number == LOST_BEFORE.get(name):
            shutil.rmtree(root / "cache")

    done = await replay(scenario, tmp_path, timeout_s=150, ends=difference.ends if difference else (), before=act)
    ends = [(entry["state"], entry["failure_reason"], entry["exit_code"]) for entry in scenario["jobs"]]
    got = [(job.state, job.failure_reason, job.exit_code) for job in done.jobs]
    assert got == list((difference and difference.ends) or ends), done.daemon_log
    if difference is None or difference.log:
        for entry, job in zip(scenario["jobs"], done.jobs, strict=True):
            expected = lines(entry["trace"], {})
            ours = lines(job.log, done.places)
            assert golden.same(expected, ours), golden.difference(expected, ours)
    assert bucket_requests(done.fake.requests) == bucket_requests(scenario["requests"])
    if scenario.get("files") and (difference is None or difference.files):
        check_files(scenario, done)


def test_the_list_of_differences_names_recordings_only() -> None:
    assert set(CACHE_DIFFERS) | set(CACHE_NOT_REPLAYED) <= set(golden.scenarios("files"))


def test_no_recording_of_a_cache_is_left_out() -> None:
    everything = {name for name in golden.scenarios("files") if re.match("cache-", name)}
    assert len(everything) == len(cases()) >= 40

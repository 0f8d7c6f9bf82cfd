"""Places of the custom executor that have GitLab Runner's own program: it does what the scripts would do without it."""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.test_custom import ARTIFACT, CONFIG, DIRECTORIES, PLAIN, run
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon
from tests.fakes.driver import custom_table, write_program

# The helper commands as far as jobs of these tests need them, with the options and the environment of the real ones.
# Each call leaves a line in $PROGRAM_LOG: its arguments, without the directory of the caches.
PROGRAM = r"""#!/bin/bash
command=$1; shift
case $command in artifacts-uploader | artifacts-downloader | cache-archiver | cache-extractor) ;; *) exit 1 ;; esac
[ "${1-}" != --help ] || exit 0
echo "$command $*" >>"$PROGRAM_LOG"
paths=() file= name=default type= format=zip expire=
while [ $# -gt 0 ]; do
  case $1 in
  --path) paths+=("$2"); shift ;;
  --file) file=$2; shift ;;
  --name) name=$2; shift ;;
  --artifact-type) type=$2; shift ;;
  --artifact-format) format=$2; shift ;;
  --expire-in) expire=$2; shift ;;
  --runner-id | --repo-url | --repo-digest | --job-name | --executor-name | --runner-name | --started-at) shift ;;
  --ended-at | --schema-version | --metadata-parameter | --response-header-timeout | --timeout | --exclude) shift ;;
  --untracked | --generate-artifacts-metadata) ;;
  *) echo "unknown option $1" >&2; exit 64 ;;
  esac
  shift
done
address=$CI_SERVER_URL/api/v4/jobs/$CI_JOB_ID/artifacts
login() { printf 'header = "JOB-TOKEN: %s"\n' "$CI_JOB_TOKEN"; }
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
case $command in
cache-extractor) [ -f "$file" ] || { echo "FATAL: file does not exist"; exit 1; }; unzip -q -o "$file" ;;
cache-archiver)
  mkdir -p "${file%/*}"; rm -f "$file"; echo "$CACHE_METADATA" >"${file%/*}/metadata.json"
  zip -q -r "$file" "${paths[@]}" ;;
artifacts-uploader)
  zip -q -r "$work/archive.zip" "${paths[@]}" && login | curl -q -sS -f -K - -o "$work/answer" \
    -F "file=@\"$work/archive.zip\";filename=\"$name.zip\";type=application/octet-stream" \
    "$address?artifact_format=$format&artifact_type=$type&expire_in=${expire// /%20}" ;;
artifacts-downloader) login | curl -q -sS -f -L -K - -o "$work/archive.zip" "$address" && unzip -q -o "$work/archive.zip" ;;
esac || { echo "FATAL: $command did not do it"; exit 1; }
echo "the program did $command"
"""
LIMITS = "--timeout 3600s --response-header-timeout 600s"
KIND = "--artifact-format zip --artifact-type archive"
Make = Callable[..., Daemon]


@pytest.fixture
async def make_custom(tmp_path: Path, fake: FakeCoordinator) -> AsyncIterator[Make]:
    made: list[Daemon] = []

    def make(shell: str = "bash") -> Daemon:
        """A daemon whose place runs ``shell`` and has the program."""
        root = tmp_path / "runner"
        program = write_program(root / "bin" / "gitlab-runner", PROGRAM)
        reply = f'config) echo \'{{"shell": "{shell}"}}\' ;;'
        driver = write_program(root / "driver.sh", PLAIN.replace('bash "$2"', f'{shell} "$2"') % reply)
        text = CONFIG.format(url=fake.url) + DIRECTORIES.format(root=root)
        environment = {"PATH": f"{program.parent}:{os.environ['PATH']}", "PROGRAM_LOG": str(root / "program.log")}
        daemon = Daemon(root, text + custom_table(driver), environment=environment)
        made.append(daemon)
        return daemon

    yield make
    for daemon in made:
        await daemon.stop()


def told(daemon: Daemon) -> list[str]:
    path = Path(daemon.environment["PROGRAM_LOG"])
    return [line.replace(str(daemon.root), "ROOT") for line in path.read_text().splitlines()] if path.exists() else []


def dependency(token: str) -> dict[str, Any]:
    return {"id": 1, "token": token, "name": "one", "artifacts_file": {"filename": "artifacts.zip", "size": 1}}


@pytest.mark.parametrize("shell", ["bash", "dash"])
async def test_the_program_moves_caches_and_artifacts(shell: str, fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom("sh" if shell == "dash" else shell)
    cache = [{"key": "k", "paths": ["kept/", "it's mine/"], "policy": "pull-push", "when": "on_success"}]
    script = ['mkdir -p out kept "it\'s mine"; echo made >out/file; echo cached >kept/file; touch "it\'s mine/x"']
    artifact = {**ARTIFACT, "name": "the name", "expire_in": "1 week"}
    variables = {"FF_POSIXLY_CORRECT_ESCAPES": "true"}
    first = await run(fake, daemon, script, artifacts=[artifact], cache=cache, variables=variables)
    assert first.state == "success", f"{first.log}\n{daemon.log}"
    [stored] = first.artifacts
    assert stored.form["expire_in"] == "1 week"
    assert stored.file_name == "the name.zip"
    with zipfile.ZipFile(io.BytesIO(stored.content)) as archive:
        assert archive.read("out/file") == b"made\n"
    second = await run(
        fake, daemon, ["cat out/file kept/file"], cache=cache, dependencies=[dependency(first.token)], variables=variables
    )
    assert second.state == "success", f"{second.log}\n{daemon.log}"
    assert "made\ncached\n" in second.log
    for job, lines in (
        (first, ["Checking cache for k...", "FATAL: file does not exist", "Failed to extract cache"]),
        (first, ["Creating cache k...", "the program did cache-archiver", "Created cache"]),
        (first, ["Uploading artifacts...", "the program did artifacts-uploader"]),
        (second, ["Checking cache for k...", "the program did cache-extractor", "Successfully extracted cache"]),
        (second, ["Downloading artifacts for one (1)...", "the program did artifacts-downloader"]),
    ):
        places = [job.log.find(line) for line in lines]
        assert -1 not in places, (lines, job.log)
        assert places == sorted(places), (lines, job.log)
    kept = "ROOT/cache/group/project-empty/k/cache.zip"
    archiver = f"cache-archiver --file {kept} --timeout 10 --path kept/ --path it's mine/"
    assert told(daemon) == [
        f"cache-extractor --file {kept}",
        archiver,
        f"artifacts-uploader {LIMITS} --name the name --path out/ {KIND} --expire-in 1 week",
        f"cache-extractor --file {kept}",
        "artifacts-downloader ",
        archiver,
    ]
    metadata = daemon.root / "cache" / "group" / "project-empty" / "k" / "metadata.json"
    assert json.loads(metadata.read_text()) == {"cachekey": "k"}
    for job in (first, second):
        assert job.token not in " ".join(told(daemon))
        assert job.token not in job.log


async def test_a_program_that_fails_fails_uploads_but_no_caches(fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom()
    cache = [{"key": "k", "paths": ["nothing/"], "policy": "push", "when": "on_success"}]
    job = await run(fake, daemon, ["true"], cache=cache)
    assert job.state == "success", job.log
    assert "Failed to create cache" in job.log
    job = await run(fake, daemon, ["true"], artifacts=[{**ARTIFACT, "paths": ["nothing/"]}])
    assert (job.state, job.failure_reason) == ("failed", "script_failure"), job.log
    assert "FATAL: artifacts-uploader did not do it" in job.log


async def test_a_program_without_helper_commands_is_none(fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom()
    write_program(daemon.root / "bin" / "gitlab-runner", '#!/bin/sh\necho "$*" >>"$PROGRAM_LOG"\nexit 1\n')
    job = await run(fake, daemon, ["mkdir out; echo made >out/file"], artifacts=[ARTIFACT])
    assert job.state == "success", job.log
    assert len(job.artifacts) == 1
    assert told(daemon) == ["artifacts-uploader --help"]


async def test_the_program_is_told_where_artifacts_come_from(fake: FakeCoordinator, make_custom: Make) -> None:
    daemon = make_custom()
    variables = {"RUNNER_GENERATE_ARTIFACTS_METADATA": "true", "CI_RUNNER_ID": "7", "SLSA_PROVENANCE_SCHEMA_VERSION": "v1"}
    artifacts = [{**ARTIFACT, "paths": ["x"]}, {**ARTIFACT, "paths": ["x"], "artifact_type": "junit", "artifact_format": "gzip"}]
    job = await run(fake, daemon, ["echo x >x"], artifacts=artifacts, variables=variables)
    assert job.state == "success", job.log
    archive, report = (line for line in told(daemon) if line.startswith("artifacts-uploader"))
    assert "--generate-artifacts-metadata" not in report, "only a zip file has room for a statement"
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    sha = job.payload["git_info"]["sha"]
    assert re.search(
        rf"--generate-artifacts-metadata --runner-id 7 --repo-url \S+/group/project --repo-digest {sha} --job-name test "
        rf"--executor-name custom --runner-name lab --started-at {time} --schema-version v1 --metadata-parameter .* "
        rf"--metadata-parameter CI_RUNNER_ID .*--ended-at {time}$",
        archive,
    )
    assert "no statement is made" not in job.log

"""Caches where no recording helps: restarts, hostile places, archives of the reference, and buckets."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract import golden
from tests.contract.test_artifacts import add_job, ended
from tests.fakes.bucket import SECRET, bucket
from tests.fakes.coordinator import FakeCoordinator, Job
from tests.fakes.daemon import Daemon


def cache(key: str = "k", *paths: str, **changes: Any) -> dict[str, Any]:
    return {"key": key, "paths": list(paths or ("c/",)), "policy": "pull-push", "when": "on_success", **changes}


async def run(fake: FakeCoordinator, job_id: int, script: list[str], *caches: dict[str, Any], **changes: Any) -> Job:
    return await ended(add_job(fake, job_id, script, cache=list(caches), **changes))


def stored(daemon: Daemon, key: str = "k", name: str = "project-empty") -> Path:
    return daemon.root / "cache" / "group" / name / key / "cache.zip"


async def test_files_restored_and_not_touched_are_not_packed_again(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon()
    daemon.start()
    await run(fake, 1, ["mkdir c; echo 1 > c/f; ln -s f c/l; chmod 700 c/f"], cache())
    before = stored(daemon).stat()
    again = await run(fake, 2, ["cat c/l"], cache())
    assert again.state == "success"
    assert (stored(daemon).stat().st_ino, stored(daemon).stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert "uploading existing archive" in again.log


@pytest.mark.parametrize("change", ["touch -d '2001-01-01' c/f", "rm c/g; touch -d '2001-01-01' c", "chmod 755 c/f"])
async def test_changes_that_times_do_not_show_are_saved(
    change: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    """The reference compares times alone: what is older than the archive is taken for saved."""
    daemon = make_daemon()
    daemon.start()
    await run(fake, 1, ["mkdir c; echo 1 > c/f; echo 2 > c/g"], cache())
    await run(fake, 2, [change], cache())
    last = await run(fake, 3, ["stat -c '%n %a %Y' c/* c"], cache(policy="pull"))
    want = {"chmod": "c/f 755", "touch": "c/f 644 978", "rm": "c 755 978"}[change.split()[0]]
    assert want in last.log


async def test_jobs_at_once_each_save_their_files(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    """Also where the clock gives their files the same times: it ticks slower than jobs run."""
    daemon = make_daemon()
    daemon.start()
    begun, first_saved = tmp_path / "begun", tmp_path / "first-saved"
    scripts = (f"until [ -e {begun} ]; do sleep 0.05; done", f"touch {begun}; until [ -e {first_saved} ]; do sleep 0.05; done")
    first, second = (
        add_job(fake, number, [f"mkdir c; echo {number} > c/f; touch -d '2020-01-01 1:00:00.5' c/f c; {script}"], cache=[cache()])
        for number, script in enumerate(scripts, 1)
    )
    await ended(first)
    first_saved.touch()
    await ended(second)
    last = await run(fake, 3, ["cat c/f"], cache(policy="pull"))
    assert "\n2\n" in last.log, "the one that ended last"


@pytest.mark.parametrize("kind", ["zip", "tarzstd", "zipzstd"])
async def test_an_archive_of_the_reference_is_restored(
    kind: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    if not golden.ROOT.is_dir():
        pytest.skip(golden.ABSENT)
    recorded = golden.read("files", "cache-formats-names")["files"]
    daemon = make_daemon()
    stored(daemon).parent.mkdir(parents=True)
    stored(daemon).write_bytes(base64.b64decode(recorded[f"cache/git/group/project-empty/{kind}/cache.zip"]["base64"]))
    daemon.start()
    job = await run(fake, 1, ["stat -c '%n %s' c/f"], cache())
    assert "c/f 4\n" in job.log


async def test_a_link_planted_in_the_place_of_a_cache_is_not_followed(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    daemon = make_daemon()
    outside = tmp_path / "outside"
    outside.mkdir()
    stored(daemon).parent.parent.mkdir(parents=True)
    stored(daemon).parent.symlink_to(outside)
    daemon.start()
    job = await run(fake, 1, ["mkdir c; echo 1 > c/f"], cache())
    assert job.state == "success"
    assert "Failed to create cache" in job.log
    assert not list(outside.iterdir())


async def test_a_full_disk_costs_the_cache_only(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    small = daemon.root / "cache"
    small.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    try:
        daemon.start()
        job = await run(fake, 1, ["mkdir c; head -c 4000000 /dev/urandom > c/f"], cache())
        assert job.state == "success"
        assert "no space left on device" in job.log
        assert "Failed to create cache" in job.log
        assert [path for path in small.rglob("*") if path.is_file()] == []
        await daemon.stop()
    finally:
        subprocess.run(["umount", "-l", small], check=True)


async def test_what_a_job_may_not_read_is_named(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.start()
    job = await run(fake, 1, ["mkdir c; echo 1 > c/f; mkfifo c/p"], cache())
    assert job.state == "success"
    assert "c/p" in job.log


# Buckets


class S3:
    """A server that speaks S3, with a bucket, and a look at what is in it."""

    def __init__(self, address: str) -> None:
        import boto3

        self.address = address
        self._call("reset", b"")
        self._session = boto3.Session("root", SECRET, region_name="us-east-1")
        self.client = self.connect("s3")
        self.client.create_bucket(Bucket="bkt")

    def _call(self, name: str, data: bytes) -> None:
        headers = {"Content-Type": "text/plain"}
        request = urllib.request.Request(f"http://{self.address}/moto-api/{name}", data, headers, method="POST")
        urllib.request.urlopen(request).close()

    def close(self) -> None:
        self._call("reset-auth", b"inf")

    def connect(self, service: str) -> Any:
        return self._session.client(service, endpoint_url=f"http://{self.address}")

    def names(self) -> list[str]:
        return [entry["Key"] for entry in self.client.list_objects_v2(Bucket="bkt").get("Contents", [])]

    def require_signatures(self) -> tuple[str, str]:
        """From now on every signature is checked; a user who may do everything."""
        iam = self.connect("iam")
        iam.create_user(UserName="runner")
        everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
        iam.put_user_policy(UserName="runner", PolicyName="all", PolicyDocument=json.dumps(everything))
        key = iam.create_access_key(UserName="runner")["AccessKey"]
        self._call("reset-auth", b"0")
        return key["AccessKeyId"], key["SecretAccessKey"]


@pytest.fixture
def s3() -> Iterator[S3]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    found = S3(f"{host}:{port}")
    yield found
    found.close()
    server.stop()


def lose(daemon: Daemon) -> None:
    shutil.rmtree(daemon.root / "cache")


async def test_a_cache_goes_through_a_bucket(s3: S3, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(extra=bucket(s3.address))
    daemon.start()
    first = await run(fake, 1, ["mkdir c; echo one > c/f"], cache("a b/ü"))
    assert s3.names() == ["runner/lab/project/9/a b/ü"]
    assert s3.client.head_object(Bucket="bkt", Key="runner/lab/project/9/a b/ü")["Metadata"] == {"cachekey": "a b/\\xfc"}
    lose(daemon)
    second = await run(fake, 2, ["cat c/f"], cache("a b/ü"))
    assert "\none\n" in second.log
    assert f"Downloading cache from http://{s3.address}/bkt/runner/lab/project/9/a%20b/%C3%BC\x1b" in second.log
    third = await run(fake, 3, ["cat c/f"], cache("a b/ü"))
    assert "cache.zip is up to date" in third.log
    assert "Primary cache already exists remotely, skipping upload" in third.log
    assert {first.state, second.state, third.state} == {"success"}


async def test_where_the_bucket_is_can_be_kept_out_of_the_log(
    s3: S3, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    table = bucket(s3.address).replace("[runners.cache]\n", "[runners.cache]\n    RedactURL = true\n")
    daemon = make_daemon(extra=table)
    daemon.start()
    first = await run(fake, 1, ["mkdir c; echo one > c/f"], cache())
    lose(daemon)
    second = await run(fake, 2, ["cat c/f"], cache())
    assert "\none\n" in second.log
    assert "Uploading cache.zip to remote storage" in first.log
    assert "Downloading cache from remote storage" in second.log
    for job in (first, second):
        assert s3.address not in job.log


async def test_a_newer_archive_in_the_bucket_wins(s3: S3, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    here, there = (make_daemon(extra=bucket(s3.address, shared=True)) for _ in range(2))
    here.start()
    await run(fake, 1, ["mkdir c; echo old > c/f"], cache())
    await here.stop()
    os.utime(stored(here), (1, 1))  # times in a bucket are whole seconds
    there.start()
    await run(fake, 2, ["echo new > c/f"], cache())
    await there.stop()
    here.start()
    last = await run(fake, 3, ["cat c/f"], cache())
    assert "\nnew\n" in last.log
    assert s3.names() == ["project/9/k"]


async def test_prefix_and_sharing_are_in_the_name(s3: S3, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(extra=bucket(s3.address, path="/pre/fix/", shared=True))
    daemon.start()
    await run(fake, 1, ["mkdir c; echo one > c/f"], cache(), variables={"FF_HASH_CACHE_KEYS": "true"})
    digest = "8254c329a92850f6d539dd376f4816ee2764517da5e0235514af433164480d7a"
    assert s3.names() == [f"pre/fix/project/9/82/{digest}"]


async def test_signatures_are_right_and_a_wrong_key_is_explained(
    s3: S3, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    access, secret = s3.require_signatures()
    good = make_daemon(extra=bucket(s3.address, access=access, secret=secret))
    good.start()
    job = await run(fake, 1, ["mkdir c; echo one > c/f"], cache())
    assert "Created cache" in job.log
    await good.stop()
    lose(good)
    bad = make_daemon(extra=bucket(s3.address, access=access, secret="x" * 40))
    bad.start()
    job = await run(fake, 2, ["mkdir c; echo two > c/f"], cache())
    assert job.state == "success"
    assert "WARNING: received: 403 Forbidden. Request failed with code: SignatureDoesNotMatch" in job.log
    assert "FATAL: received: 403 Forbidden" in job.log
    assert "x" * 40 not in job.log + bad.log
    await bad.stop()
    good.start()
    assert "\none\n" in (await run(fake, 3, ["cat c/f"], cache())).log


async def test_a_role_is_assumed(s3: S3, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    role = '      RoleARN = "arn:aws:iam::123456789012:role/cache"\n'
    daemon = make_daemon(extra=bucket(s3.address, more=role))
    daemon.environment = {"AWS_ENDPOINT_URL_STS": f"http://{s3.address}"}
    daemon.start()
    job = await run(fake, 1, ["mkdir c; echo one > c/f; env"], cache())
    assert s3.names() == ["runner/lab/project/9/k"], job.log


async def test_jobs_never_see_a_credential(s3: S3, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(extra=bucket(s3.address))
    daemon.start()
    everything = "env; cat /proc/$PPID/environ /proc/$PPID/cmdline | tr '\\0' '\\n'; grep -rs . ../*.tmp || true"
    job = await run(fake, 1, ["mkdir c; echo one > c/f", everything], cache(), variables={"CI_DEBUG_TRACE": "true"})
    assert job.state == "success"
    assert s3.names()
    for text in (job.log, daemon.log):
        assert SECRET not in text
        assert "AKIDEXAMPLE" not in text
        assert "X-Amz-" not in text


async def test_a_big_archive_is_moved_in_parts(s3: S3, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    settings = {"FF_USE_PARALLEL_CACHE_TRANSFER": "true", "CACHE_CHUNK_SIZE": "5242880", "CACHE_CONCURRENCY": "4"}
    daemon = make_daemon(extra=bucket(s3.address))
    daemon.start()
    make = "mkdir c; head -c 23000000 /dev/urandom > c/f; sha256sum c/f"
    first = await run(fake, 1, [make], cache(), variables=settings)
    assert s3.client.head_object(Bucket="bkt", Key="runner/lab/project/9/k")["ETag"].endswith('-5"'), "five parts"
    lose(daemon)
    second = await run(fake, 2, ["sha256sum c/f"], cache(), variables=settings)
    digest = re.search(r"^[0-9a-f]{64}  c/f$", first.log, re.M)
    assert digest is not None
    assert digest[0] in second.log


# The bucket of the fake, which fails on demand


def addressed(fake: FakeCoordinator, **changes: Any) -> str:
    return bucket(fake.url.removeprefix("http://"), **changes)


@pytest.mark.parametrize(
    ("fault", "details"),
    [("status", {"status": 503}), ("reset", {}), ("lost", {})],
)
async def test_transfers_are_tried_three_times(
    fault: str, details: dict[str, Any], fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon(extra=addressed(fake))
    daemon.start()
    fake.faults.add("PUT /bkt", fault, 2, **details)
    first = await run(fake, 1, ["mkdir c; echo one > c/f"], cache())
    assert first.log.count("Uploading cache.zip to") == 3
    assert "Created cache" in first.log
    lose(daemon)
    fake.faults.add("GET /bkt", fault, 2, **details)
    second = await run(fake, 2, ["cat c/f"], cache())
    assert second.log.count("Using presigned URL for cache download") == 3
    assert "\none\n" in second.log


async def test_an_archive_that_breaks_off_is_fetched_again(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(extra=addressed(fake))
    daemon.start()
    await run(fake, 1, ["mkdir c; head -c 300000 /dev/urandom > c/f"], cache())
    lose(daemon)
    fake.faults.add("GET /bkt", "short", 1, bytes=100_000)
    second = await run(fake, 2, ["stat -c %s c/f"], cache())
    assert "\n300000\n" in second.log
    assert second.log.count("Retrying...") == 1


@pytest.mark.parametrize(("fault", "details"), [("short", {"bytes": 100_000}), ("reset", {}), ("status", {"status": 503})])
async def test_a_part_that_breaks_off_is_fetched_again(
    fault: str, details: dict[str, Any], fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    settings = {"FF_USE_PARALLEL_CACHE_TRANSFER": "true", "CACHE_CHUNK_SIZE": "5242880", "CACHE_CONCURRENCY": "3"}
    daemon = make_daemon(extra=addressed(fake))
    daemon.start()
    first = await run(fake, 1, ["mkdir c; head -c 12000000 /dev/urandom > c/f; sha256sum c/f"], cache())
    lose(daemon)
    fake.faults.add("GET /bkt", fault, 1, skip=2, **details)
    second = await run(fake, 2, ["sha256sum c/f"], cache(), variables=settings)
    digest = re.search(r"^[0-9a-f]{64}  c/f$", first.log, re.M)
    assert digest is not None
    assert digest[0] in second.log
    assert second.log.count("Retrying...") == 1


async def test_a_bucket_that_does_not_answer_costs_a_bounded_time(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon(extra=bucket("127.0.0.1:1"))
    daemon.start()
    job = await run(fake, 1, ["mkdir c; echo one > c/f"], cache())
    assert job.state == "success"
    assert job.log.count("Retrying...") == 4, "two on the way in and two on the way out"
    assert "error sending request" in job.log
    assert stored(daemon).is_file(), "kept on this host"


async def test_an_archive_above_the_limit_stays_here(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(extra=addressed(fake, limit=50))
    daemon.start()
    job = await run(fake, 1, ["mkdir c; head -c 4000 /dev/urandom > c/f"], cache())
    assert "is too big (Limit is set to 50). Cache will be stored only locally." in job.log
    assert fake.bucket.objects == {}


@pytest.mark.parametrize("moment", ["PUT", "GET"])
async def test_a_transfer_survives_its_daemon(moment: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(extra=addressed(fake))
    daemon.start()
    await run(fake, 1, ["mkdir c; echo one > c/f"], cache())
    lose(daemon)
    fake.bucket.objects = {} if moment == "PUT" else fake.bucket.objects
    fake.faults.add(f"{moment} /bkt", "delay", 1, seconds=20)
    seen = len(fake.requests)
    job = add_job(fake, 2, ["mkdir -p c; echo two > c/g"], cache=[cache()])
    await fake.until(lambda: any(request.method == moment and "/bkt/" in request.path for request in fake.requests[seen:]))
    daemon.kill()
    daemon.start()
    await ended(job)
    assert (job.state, job.log_is_whole()) == ("success", True)
    assert "Created cache" in job.log
    lose(daemon)
    last = await run(fake, 3, ["cat c/g"], cache(policy="pull"))
    assert "\ntwo\n" in last.log
    assert [name for name in os.listdir(stored(daemon).parent) if name.startswith(".")] == []


async def test_without_the_library_caches_stay_here(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(extra=addressed(fake))
    hidden = daemon.root / "hidden" / "obstore"
    hidden.mkdir(parents=True)
    (hidden / "__init__.py").write_text("raise ImportError('hidden')\n")
    daemon.environment = {"PYTHONPATH": str(hidden.parent)}
    daemon.start()
    job = await run(fake, 1, ["mkdir c; echo one > c/f"], cache())
    assert "needs the package obstore: install pyrunner[cache]. Caches are stored only locally." in job.log
    assert stored(daemon).is_file()
    await asyncio.sleep(0)


async def test_an_archive_that_the_bucket_has_not_is_not_taken_from_here(
    s3: S3, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon(extra=bucket(s3.address))
    daemon.start()
    await run(fake, 1, ["mkdir c; echo one > c/f"], cache())
    (name,) = s3.names()
    s3.client.delete_object(Bucket="bkt", Key=name)
    assert stored(daemon).exists()
    job = await run(fake, 2, ["test ! -e c"], cache(policy="pull"))
    assert job.state == "success", job.log
    assert "WARNING: file does not exist" in job.log
    assert "Failed to extract cache" in job.log


async def test_keys_do_not_see_what_scripts_set_and_paths_do(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon()
    daemon.start()
    job = await run(fake, 1, ['echo "D=c" >> "$GITLAB_ENV"; mkdir c; echo 1 > c/f'], cache("k$D", "$D/"), cache("$D", "$D/"))
    assert "Creating cache k..." in job.log
    assert stored(daemon).exists()
    assert "Skipping cache archiving due to empty cache key" in job.log
    assert "sanitized" not in job.log


@pytest.mark.parametrize("path", [".", "./", "$CI_PROJECT_DIR", "**"])
async def test_clearing_up_behind_a_broken_archive_keeps_the_project(
    path: str, fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    daemon = make_daemon()
    daemon.start()
    flags = {"FF_CLEAN_UP_FAILED_CACHE_EXTRACT": "true", "GIT_STRATEGY": "none"}
    await run(fake, 1, ["echo 1 > f"], cache("k", "f"), variables=flags)
    (archive,) = (daemon.root / "cache").rglob("cache.zip")
    archive.write_bytes(b"no archive")
    job = await run(fake, 2, ["cat f"], cache("k", path, policy="pull"), variables=flags)
    assert job.state == "success", job.log
    assert f"Removing {path}\n" in job.log


async def test_complaints_about_keys_come_before_the_first_look(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon]
) -> None:
    make_daemon().start()
    keys = {"fallback_keys": ["..", "x/../y"]}
    job = await run(fake, 1, ["true"], cache("a/../k", **keys), variables={"CACHE_FALLBACK_KEY": "z/../m-protected"})
    lines = [line for line in job.log.splitlines() if "cache key" in line or "CACHE_FALLBACK" in line or "Checking" in line]
    found = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines[: lines.index(next(x for x in lines if "Checking" in x)) + 3]]
    assert found == [
        'cache key "a/../k" sanitized to "k"',
        'cache key ".." could not be sanitized',
        'cache key "x/../y" sanitized to "y"',
        'CACHE_FALLBACK_KEY "m-protected" not allowed to end in "-protected"',
        'cache key "z/../m-protected" sanitized to "m-protected"',
        "Checking cache for k...",
        "Checking cache for y...",
        'cache key "a/../k" sanitized to "k"',
    ]

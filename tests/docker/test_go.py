"""Shared stores of the Go tool in containers, with an image that has the Go tool."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import docker
import pytest

from tests.contract.test_go import (
    COUNT,
    SERVICE,
    SHOW,
    SMALL,
    SMALL_BUILD,
    TARGET,
    add,
    build_in_every_way,
    build_in_two_slots,
    ended,
    poison,
    printed,
    run,
    sources,
    store_line,
)
from tests.docker import images
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon
from tests.waiting import until

pytestmark = pytest.mark.timeout(900)
MakeDaemon = Callable[..., Daemon]
GO = "  [runners.go]\n"


@pytest.fixture
def go_daemon(make_daemon: MakeDaemon, golang: str) -> MakeDaemon:
    """A daemon whose jobs run in the image with the Go tool."""

    def make(table: str = "", **changes: str) -> Daemon:
        daemon = make_daemon(docker=GO + table, **changes)
        text = daemon.config.read_text()
        daemon.config.write_text(text.replace('image = "busybox:local"', f'image = "{golang}"'))
        daemon.start()
        return daemon

    return make


@pytest.fixture
def modules(tmp_path: Path) -> Path:
    """What the service needs, as a proxy of modules has it."""
    cache = tmp_path / "modules"
    environment = {**os.environ, "GOMODCACHE": str(cache), "GOFLAGS": "-modcacherw"}
    subprocess.run(["go", "mod", "download"], cwd=SERVICE, env=environment, check=True)
    return cache / "cache" / "download"


async def test_what_one_job_built_the_next_one_has(fake: FakeCoordinator, go_daemon: MakeDaemon) -> None:
    commit = sources(fake, SMALL)
    go_daemon()
    first = await run(fake, 1, [SMALL_BUILD, "./small"], commit=commit)
    assert "scope project/unprotected, cold (project-9)" in store_line(first)
    assert int(printed(first, "compiled")) > 2
    second = await run(fake, 2, [SMALL_BUILD, "./small"], commit=commit)
    assert re.search(r"Go cache: [\d.]+ MiB, scope project/unprotected, warm \(project-9\)", store_line(second))
    assert printed(second, "compiled") == "0"


async def test_two_slots_build_into_one_store_at_once(fake: FakeCoordinator, go_daemon: MakeDaemon) -> None:
    commit = sources(fake, SMALL)
    go_daemon()
    jobs = [add(fake, number, [SMALL_BUILD, "./small"], commit=commit) for number in (1, 2)]
    for job in jobs:
        assert (await ended(job)).state == "success", job.log
    later = [add(fake, number, [SMALL_BUILD], commit=commit) for number in (3, 4)]
    assert [printed(await ended(job), "compiled") for job in later] == ["0", "0"]


async def test_refs_that_are_not_protected_have_a_store_of_their_own(fake: FakeCoordinator, go_daemon: MakeDaemon) -> None:
    daemon = go_daemon()
    keep = "mkdir -p $GOCACHE/ab; echo $CI_JOB_ID > $GOCACHE/ab/ab00-d"
    first = await run(fake, 1, [keep], protected=True)
    assert "scope project/protected, cold (project-9)" in store_line(first)
    pretends = {"CI_COMMIT_REF_PROTECTED": "true"}
    second = await run(fake, 2, [f"echo seen=$(ls $GOCACHE); {keep}"], variables=pretends)
    assert printed(second, "seen") == ""
    third = await run(fake, 3, ["echo kept=$(cat $GOCACHE/ab/ab00-d)"], protected=True)
    assert "warm" in store_line(third)
    assert printed(third, "kept") == "1"
    other = await run(fake, 4, ["echo seen=$(ls $GOCACHE)"], protected=True, project=8)
    assert printed(other, "seen") == ""
    stores = [path.name.rpartition("-")[2] for path in (daemon.state / "go" / "mounted").iterdir()]
    assert sorted(stores) == ["protected", "protected", "unprotected"]


async def test_images_have_build_caches_of_their_own_with_cgo(
    fake: FakeCoordinator, go_daemon: MakeDaemon, client: docker.APIClient
) -> None:
    """Headers of an image are in no key. Without cgo there is nothing of an image in what is built."""
    other = images.make(client, "golang-other:local", images.golang(), ["ENV OTHER=1"])
    daemon = go_daemon()
    show = ["echo seen=$(ls $GOCACHE | tr '\\n' ' ')", "touch $GOCACHE/$CI_JOB_ID"]
    off = {"CGO_ENABLED": "0"}
    jobs = [
        await run(fake, 1, show),
        await run(fake, 2, show, image={"name": other}),
        await run(fake, 3, show),
        await run(fake, 4, show, variables=off),
        await run(fake, 5, show, image={"name": other}, variables=off),
    ]
    assert [printed(job, "seen").strip() for job in jobs] == ["", "", "1", "", "4"]
    assert len(list((daemon.state / "go").glob("mounted/*/*/images/*"))) == 2


async def test_what_the_image_sets_is_never_changed(
    fake: FakeCoordinator, go_daemon: MakeDaemon, client: docker.APIClient
) -> None:
    own = {
        "GOCACHE": "/own/cache",
        "GOMODCACHE": "/own/mod",
        "GOPATH": "/own/path",
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "https://own",
    }
    settings = [f"ENV {name}={value}" for name, value in own.items()]
    go_daemon('    proxy = "https://table.example,direct"\n')
    ours = await run(fake, 1, [SHOW])
    assert printed(ours, "GOCACHE") == f"{TARGET}/build"
    assert printed(ours, "GOPROXY") == "https://table.example,direct"
    image = images.make(client, "golang-own:local", images.golang(), settings)
    job = await run(fake, 2, [SHOW], image={"name": image})
    assert {name: printed(job, name) for name in own} == own
    job = await run(fake, 3, [SHOW], variables=own)
    assert {name: printed(job, name) for name in own} == own


async def test_a_cache_of_the_modules_is_served_and_the_job_told(
    fake: FakeCoordinator, go_daemon: MakeDaemon, client: docker.APIClient
) -> None:
    """As it is written for images whose own place that is, and where no archive can reach it."""
    go_daemon()
    image = images.make(client, "golang-path:local", images.golang(), ["ENV GOPATH=/go"])
    caches = [{"key": "go", "paths": ["/go/pkg/mod/"], "policy": "pull-push", "when": "on_success"}]
    keep = "echo place=$(go env GOMODCACHE) seen=$(ls $GOMODCACHE | tr '\\n' ' '); mkdir -p $GOMODCACHE/m; touch $GOMODCACHE/m/f"
    jobs = [await run(fake, number, [keep], image={"name": image}, cache=caches) for number in (1, 2)]
    assert [printed(job, "place").strip() for job in jobs] == [f"{TARGET}/mod seen=", f"{TARGET}/mod seen=m"]
    for job in jobs:
        assert "Cache path /go/pkg/mod/ is served by the Go cache, nothing of it is packed" in job.log
        assert not [name for name in re.findall(r"section_start:\d+:(\w+)", job.log) if "cache" in name]


async def test_accounts_of_images_share_a_store(fake: FakeCoordinator, go_daemon: MakeDaemon, client: docker.APIClient) -> None:
    """What root makes under a umask of its own is everybody's."""
    other = images.make(client, "golang-user:local", images.golang(), ["USER 1234:1234"])
    go_daemon()
    make = "umask 077; mkdir -p $GOMODCACHE/a $GOCACHE/ab; echo of-root | tee $GOMODCACHE/a/f $GOCACHE/ab/f"
    await run(fake, 1, [make], variables={"CGO_ENABLED": "0"})
    script = ["id -u", "cat $GOMODCACHE/a/f $GOCACHE/ab/f", "touch $GOMODCACHE/a/g $GOCACHE/ab/g"]
    await run(fake, 2, script, image={"name": other}, variables={"CGO_ENABLED": "0", "GIT_STRATEGY": "none"})


async def test_jobs_of_lower_trust_read_the_modules_of_protected_ones(
    fake: FakeCoordinator, go_daemon: MakeDaemon, modules: Path
) -> None:
    commit = sources(fake, SERVICE)
    daemon = go_daemon('    proxy = "off"\n')
    first = await run(fake, 1, ["echo store=$GOMODCACHE"], protected=True)
    assert printed(first, "store") == f"{TARGET}/mod"
    (store,) = (daemon.state / "go" / "mounted").glob("*-protected/*")
    shutil.copytree(modules, store / "mod" / "cache" / "download")
    await run(fake, 2, ["go mod download"], commit=commit, protected=True)
    await until(lambda: list((store / "published").rglob("*.zip")))
    spoil = f"for file in $(find {TARGET}/proxy -name '*.zip'); do {{ echo bad > $file && echo spoiled; }} || true; done"
    job = await run(fake, 3, ["go env GOPROXY", "go mod download && go mod verify", spoil], commit=commit)
    assert f"file://{TARGET}/proxy,off" in job.log
    assert "all modules verified" in job.log
    assert "Read-only file system" in job.log
    assert "\nspoiled" not in job.log


async def test_a_killed_daemon_loses_no_store(fake: FakeCoordinator, go_daemon: MakeDaemon) -> None:
    daemon = go_daemon('    max_size = "1KiB"\n')
    script = ["mkdir -p $GOCACHE/ab; head -c 70000 /dev/zero > $GOCACHE/ab/ab00-d; touch $GOPATH/here"]
    script.append("until [ -e $GOPATH/going ]; do sleep 0.2; done; test -e $GOCACHE/ab/ab00-d && echo kept=yes")
    job = add(fake, 1, script)
    places = daemon.state / "go" / "mounted"
    await until(lambda: list(places.glob("*/*/path/here")), 120)
    (here,) = places.glob("*/*/path/here")
    daemon.kill()
    daemon.start()
    await run(fake, 2, ["true"])
    other = await run(fake, 3, ["echo seen=$(ls $GOCACHE)"])
    assert printed(other, "seen") == "", "over its size and in use: others begin anew"
    (here.parent / "going").touch()
    assert (await ended(job)).state == "success", job.log
    assert printed(job, "kept") == "yes"
    await until(lambda: not here.parent.parent.exists(), 60)


@pytest.mark.slow
async def test_two_slots_build_a_service_on_protected_and_other_refs(
    fake: FakeCoordinator, go_daemon: MakeDaemon, modules: Path
) -> None:
    """Modules come from a directory of the host, as a proxy."""
    records = '[pyrunner.disk]\n    records = "10MiB"\n'
    volumes = f'["/cache", "{modules}:/modules:ro"]'
    await build_in_two_slots(fake, go_daemon(f'    proxy = "file:///modules"\n{records}', volumes=volumes))


async def test_what_is_planted_in_a_build_cache_stays_in_its_scope(fake: FakeCoordinator, go_daemon: MakeDaemon) -> None:
    go_daemon()
    await poison(fake)


@pytest.mark.slow
async def test_every_way_of_building_is_warm_with_a_compiler_of_c(
    fake: FakeCoordinator, go_daemon: MakeDaemon, golang_with_c: str
) -> None:
    go_daemon()
    await build_in_every_way(fake, image={"name": golang_with_c})


@pytest.mark.slow
async def test_every_way_of_building_is_warm_the_second_time(fake: FakeCoordinator, go_daemon: MakeDaemon) -> None:
    """Coverage, another architecture, flags of the linker, vendored modules; the image has no compiler of C."""
    commit = sources(fake, SERVICE)
    go_daemon()
    env = {"CGO_ENABLED": "0"}
    script = [
        COUNT,
        "go mod vendor",
        "count test go test -x -mod=vendor -coverprofile=cover.out ./...",
        "GOOS=linux GOARCH=arm64 count cross go build -x -mod=vendor -o arm .",
        "count release go build -x -mod=vendor -ldflags '-s -w' -o greeter .",
    ]
    first = await run(fake, 1, script, commit=commit, variables=env)
    kinds = ("test", "cross", "release")
    assert int(printed(first, "cross")) > 50
    second = await run(fake, 2, script, commit=commit, variables=env)
    assert [printed(second, kind) for kind in kinds] == ["0", "0", "0"], second.log

"""Shared stores of the Go tool, with the Go tool: what is warm, what is whose, and what nobody can plant."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import CONFIG
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator, Job, job_payload
from tests.fakes.daemon import Daemon
from tests.waiting import until

pytestmark = pytest.mark.timeout(900)

ROOT = Path(__file__).resolve().parents[2]
SERVICE = ROOT / "examples" / "go-service"
USER = "pyrunner-go-test"
GO = "\n  [runners.go]\n"
# A program that is built in a second, and one package of its own.
SMALL = {
    "go.mod": "module example.com/small\n\ngo 1.20\n",
    "main.go": 'package main\n\nimport "example.com/small/inner"\n\nfunc main() { println(inner.Text) }\n',
    "inner/inner.go": 'package inner\n\nconst Text = "built"\n',
}
SMALL_BUILD = "go build -x -o small . 2>log; echo compiled=$(grep -c 'compile -o' log)"
COUNT = """count() {
name=$1; shift
"$@" 2>log || { cat log; exit 1; }
echo $name=$(grep -c -e 'compile -o' -e 'gcc.* -c ' log)
}"""
# The example, as its own pipeline builds it.
SERVICE_BUILD = [
    "go vet ./...",
    "go build -x -o greeter . 2>log; echo compiled=$(grep -c 'compile -o' log)",
    "go test -x ./... 2>log; echo tested=$(grep -c 'compile -o' log)",
]
# Race detector and coverage, another architecture, C, flags of the linker, vendored modules.
WITH_C = {
    **SMALL,
    "inner/inner_test.go": (
        'package inner\n\nimport "testing"\n\nfunc TestText(t *testing.T) {\n\tif Text == "" {\n\t\tt.Fatal()\n\t}\n}\n'
    ),
    "c/c.go": (
        "package main\n\n// #include <stdlib.h>\n// static int twice(int x) { return abs(x) + abs(x); }\n"
        'import "C"\n\nfunc main() { println(C.twice(-21)) }\n'
    ),
}
WAYS = [
    COUNT,
    "count race go test -x -race -coverprofile=cover.out ./inner && test -s cover.out",
    "GOOS=linux GOARCH=arm64 count cross go build -x -o arm . && grep -q ELF arm",
    "CGO_ENABLED=1 count cgo go build -x -o c-program ./c && ./c-program",
    "go mod vendor && count release go build -x -mod=vendor -ldflags '-s -w' -o small . && ./small",
]
# Changes what is in the build cache, which the Go tool does not look at again: whoever shares it gets another program.
POISON = "grep -rl built $GOCACHE | xargs sed -i s/built/EVIL!/g"
Make = Callable[..., Daemon]


def with_go(table: str) -> str:
    """Keys of a runner whose jobs find the Go tool, and the table."""
    path = f"{Path(shutil.which('go') or 'go').parent}:/usr/local/bin:/usr/bin:/bin"
    return f'  environment = ["PATH={path}"]\n{GO}{table}'


@pytest.fixture
def go_daemon(make_daemon: Make) -> Make:
    """A daemon whose jobs are its own account's."""
    return lambda table="": make_daemon(extra=with_go(table))


@pytest.fixture
async def user_daemon(fake: FakeCoordinator, user: str) -> AsyncIterator[Make]:
    """A daemon whose jobs are another account's, in a place that this one can reach."""
    with tempfile.TemporaryDirectory(prefix="pyrunner-go-", dir="/tmp", ignore_cleanup_errors=True) as place:
        root = Path(place)
        root.chmod(0o755)
        made: list[Daemon] = []

        def make(table: str = "", *, before: str = "") -> Daemon:
            config = CONFIG.format(url=fake.url, root=root).replace("[[runners]]", f"{before}[[runners]]")
            daemon = Daemon(root, config + with_go(table))
            (root / "builds").mkdir()
            shutil.chown(root / "builds", user)
            daemon.start("--user", user)
            made.append(daemon)
            return daemon

        yield make
        for daemon in made:
            await daemon.stop()


@pytest.fixture
def user() -> str:
    """An account for jobs."""
    if os.geteuid() != 0:
        pytest.skip("only root can change to another account")
    subprocess.run(["useradd", "--system", "--create-home", "--shell", "/bin/bash", USER], check=False)
    Path(f"/home/{USER}/.bash_logout").unlink(missing_ok=True)
    return USER


def sources(fake: FakeCoordinator, files: dict[str, str] | Path) -> str:
    """A repository; its commit."""
    if isinstance(files, Path):
        files = {path.name: path.read_text() for path in files.iterdir() if path.is_file()}
    return git_server.make_repository(fake.repositories, "app", files)


def add(
    fake: FakeCoordinator, job_id: int, script: list[str], *, commit: str = "", protected: bool | None = False, **changes: Any
) -> Job:
    variables = {"GIT_STRATEGY": "fetch" if commit else "empty", **changes.pop("variables", {})}
    project = changes.pop("project", 9)
    payload = job_payload(job_id, script, variables=variables, **changes)
    if commit:
        payload["git_info"] |= fake.git_info(commit)
    payload["git_info"]["protected"] = protected
    payload["job_info"]["project_id"] = project
    return fake.add_job(payload)


async def ended(job: Job, timeout_s: float = 600) -> Job:
    await asyncio.wait_for(job.ended.wait(), timeout_s)
    return job


async def run(fake: FakeCoordinator, job_id: int, script: list[str], **changes: Any) -> Job:
    job = await ended(add(fake, job_id, script, **changes))
    assert job.state == "success", job.log
    return job


def store_line(job: Job) -> str:
    return next(re.sub(r"^\S+Z \w+ ", "", line) for line in job.log.splitlines() if "Go cache: " in line)


def plain(job: Job) -> str:
    """The log without times."""
    return "".join(re.sub(r"^\S+Z \w\w[OE][ +]", "", line) + "\n" for line in job.log.splitlines())


def printed(job: Job, name: str) -> str:
    """What a script said by ``echo name=…``."""
    found = re.findall(rf"^{name}=(.*)$", plain(job), re.MULTILINE)
    assert found, job.log
    return str(found[-1])


async def build_in_every_way(fake: FakeCoordinator, **changes: Any) -> None:
    """The second time nothing is compiled."""
    commit = sources(fake, WITH_C)
    first = await run(fake, 1, WAYS, commit=commit, **changes)
    assert "42" in first.log
    kinds = ("race", "cross", "cgo", "release")
    assert all(int(printed(first, kind)) > 0 for kind in kinds), first.log
    second = await run(fake, 2, WAYS, commit=commit, **changes)
    assert [printed(second, kind) for kind in kinds] == ["0", "0", "0", "0"], second.log


async def build_in_two_slots(fake: FakeCoordinator, daemon: Daemon) -> None:
    """The example, by two jobs at once, of protected refs and of others: each time nothing is warm, and everything the next
    time, which takes less than a tenth of the processor time. Nothing is saved or restored. ``daemon`` keeps records."""
    commit = sources(fake, SERVICE)
    for first_id, protected in ((1, True), (5, False)):
        jobs = [add(fake, first_id + number, SERVICE_BUILD, commit=commit, protected=protected) for number in range(2)]
        cold = [await ended(job) for job in jobs]
        jobs = [add(fake, first_id + 2 + number, SERVICE_BUILD, commit=commit, protected=protected) for number in range(2)]
        warm = [await ended(job) for job in jobs]
        assert [job.state for job in (*cold, *warm)] == ["success"] * 4, [job.log for job in (*cold, *warm)]
        trust = "protected" if protected else "unprotected"
        assert [f"scope project/{trust}, cold" in store_line(job) for job in cold] == [True, True]
        assert [f"scope project/{trust}, warm" in store_line(job) for job in warm] == [True, True]
        assert any("go: downloading" in job.log for job in cold)
        for job in warm:
            assert (printed(job, "compiled"), printed(job, "tested")) == ("0", "0"), job.log
            assert "go: downloading" not in job.log
            assert not [name for name in re.findall(r"section_start:\d+:(\w+)", job.log) if "cache" in name]
        spent = [await processor_s(daemon, job.id) for job in (*cold, *warm)]
        assert max(spent[2:]) * 10 <= max(spent[:2]), spent


async def processor_s(daemon: Daemon, job_id: int) -> float:
    """What a job's report says that it took of the processor."""
    await until(lambda: list((daemon.state / "kept").glob(f"lab-{job_id}-*/report.json")))
    (path,) = (daemon.state / "kept").glob(f"lab-{job_id}-*/report.json")
    costs = json.loads(path.read_text())["costs"]
    return float(costs["cpu_user_s"] + costs["cpu_system_s"])


async def poison(fake: FakeCoordinator) -> None:
    """What a job does to its own store is in nobody's program but those of its own scope."""
    commit = sources(fake, SMALL)
    before = await run(fake, 1, [SMALL_BUILD, "./small"], commit=commit, protected=True)
    assert "built" in plain(before)
    bad = await run(fake, 2, [SMALL_BUILD, POISON, "rm small; go build -o small . && ./small"], commit=commit)
    assert "EVIL!" in plain(bad).splitlines(), "it does work where it may"
    assert "EVIL!" in plain(await run(fake, 3, ["go build -o small . && ./small"], commit=commit)).splitlines()
    for job_id, others in ((4, {"protected": True}), (5, {"project": 8}), (6, {"project": 8, "protected": True})):
        job = await run(fake, job_id, [SMALL_BUILD, "./small"], commit=commit, **others)
        assert "built" in plain(job).splitlines()
        assert "EVIL!" not in plain(job)
        assert (printed(job, "compiled") == "0") is (job_id == 4), "of its own store the protected ref has everything"


# What is warm


async def test_what_one_job_built_the_next_one_has(fake: FakeCoordinator, go_daemon: Make) -> None:
    """Nothing is compiled, restored or saved."""
    commit = sources(fake, SMALL)
    daemon = go_daemon()
    daemon.start()
    script = [SMALL_BUILD, "./small"]
    first = await run(fake, 1, script, commit=commit)
    assert "scope project/unprotected, cold (project-9)" in store_line(first)
    assert int(printed(first, "compiled")) > 2
    second = await run(fake, 2, script, commit=commit)
    assert re.search(r"Go cache: [\d.]+ MiB, scope project/unprotected, warm \(project-9\)", store_line(second))
    assert printed(second, "compiled") == "0"
    assert "built" in second.log
    assert not [section for section in re.findall(r"section_start:\d+:(\w+)", second.log) if "cache" in section]


async def test_two_slots_build_into_one_store_at_once(fake: FakeCoordinator, go_daemon: Make, tmp_path: Path) -> None:
    commit = sources(fake, SMALL)
    daemon = go_daemon()
    daemon.start()

    def meet(me: int, other: int) -> str:
        return f"touch {tmp_path}/here-{me}; until [ -e {tmp_path}/here-{other} ]; do sleep 0.05; done"

    scripts = [[meet(1, 2), SMALL_BUILD], [meet(2, 1), SMALL_BUILD]]
    jobs = [add(fake, number, script, commit=commit) for number, script in enumerate(scripts, 1)]
    for job in jobs:
        assert (await ended(job)).state == "success", job.log
    later = [add(fake, number, [SMALL_BUILD], commit=commit) for number in (3, 4)]
    assert [printed(await ended(job), "compiled") for job in later] == ["0", "0"]


@pytest.mark.slow
async def test_a_service_with_dependencies_is_built_once(fake: FakeCoordinator, go_daemon: Make) -> None:
    """The example, also in the ways in which services are released."""
    commit = sources(fake, SERVICE)
    daemon = go_daemon()
    daemon.start()
    first = await run(fake, 1, SERVICE_BUILD, commit=commit)
    assert "go: downloading github.com/go-chi/chi" in first.log
    second = await run(fake, 2, SERVICE_BUILD, commit=commit)
    assert "go: downloading" not in second.log
    assert (printed(second, "compiled"), printed(second, "tested")) == ("0", "0")
    assert "(cached)" in second.log
    release = ["go build -x -ldflags '-s -w' -o greeter . 2>log; echo compiled=$(grep -c 'compile -o' log)"]
    third = await run(fake, 3, release, commit=commit)
    assert int(printed(third, "compiled")) <= 1, "the program itself is told the flags, nothing else depends on them"
    vendored = ["go mod vendor", "go build -mod=vendor -o greeter . && go version -m greeter | grep -c go-chi", *release]
    fourth = await run(fake, 4, vendored, commit=commit)
    assert "go: downloading" not in fourth.log


@pytest.mark.slow
async def test_every_way_of_building_is_warm_the_second_time(fake: FakeCoordinator, go_daemon: Make) -> None:
    daemon = go_daemon()
    daemon.start()
    await build_in_every_way(fake)


@pytest.mark.slow
async def test_two_slots_build_a_service_on_protected_and_other_refs(fake: FakeCoordinator, user_daemon: Make) -> None:
    await build_in_two_slots(fake, user_daemon(before='[pyrunner.disk]\n  records = "10MiB"\n'))


# What counts before the store

SHOW = 'for name in GOCACHE GOMODCACHE GOPATH GOFLAGS GOPROXY; do echo "$name=$(go env $name)"; done'


async def test_variables_of_others_are_never_changed(fake: FakeCoordinator, go_daemon: Make) -> None:
    own = {
        "GOCACHE": "/own/cache",
        "GOMODCACHE": "/own/mod",
        "GOPATH": "/own/path",
        "GOFLAGS": "-mod=mod",
        "GOPROXY": "https://own",
    }
    daemon = go_daemon('    proxy = "https://table.example,direct"\n')
    daemon.start()
    plain_job = await run(fake, 1, [SHOW, "echo set=$(env | sed -n 's/^\\(GO[A-Z]*\\)=.*/\\1/p' | sort | tr '\\n' ' ')"])
    assert printed(plain_job, "GOPROXY") == "https://table.example,direct"
    assert printed(plain_job, "GOFLAGS") == "-modcacherw"
    for name in ("GOCACHE", "GOMODCACHE", "GOPATH"):
        assert printed(plain_job, name).startswith(str(daemon.state / "go"))
    assert printed(plain_job, "set").split() == sorted(own), "GOPRIVATE, GONOSUMDB and the rest are the project's"
    job = await run(fake, 2, [SHOW], variables=own)
    assert {name: printed(job, name) for name in own} == own
    (daemon.home / ".config" / "go").mkdir(parents=True, exist_ok=True)
    (daemon.home / ".config" / "go" / "env").write_text("".join(f"{name}={value}\n" for name, value in own.items()))
    job = await run(fake, 3, [SHOW])
    assert {name: printed(job, name) for name in own} == own, "what go env -w has set"
    (daemon.home / ".config" / "go" / "env").unlink()
    (daemon.home / ".profile").write_text("".join(f"export {name}={value}\n" for name, value in own.items()))
    job = await run(fake, 4, [SHOW])
    assert {name: printed(job, name) for name in own} == own, "what the profile of the host has set"


async def test_variables_of_the_runner_count(fake: FakeCoordinator, go_daemon: Make) -> None:
    daemon = go_daemon()
    text = daemon.config.read_text().replace("environment = [", 'environment = ["GOFLAGS=-mod=mod", "GOPROXY=https://own", ')
    daemon.config.write_text(text)
    daemon.start()
    job = await run(fake, 1, [SHOW])
    assert (printed(job, "GOFLAGS"), printed(job, "GOPROXY")) == ("-mod=mod", "https://own")


async def test_a_job_may_do_without_a_store(fake: FakeCoordinator, go_daemon: Make) -> None:
    daemon = go_daemon()
    daemon.start()
    job = await run(fake, 1, [SHOW], variables={"PYRUNNER_GO_CACHE": "off"})
    assert "Go cache: none (PYRUNNER_GO_CACHE says so)" in job.log
    assert printed(job, "GOCACHE") == str(daemon.home / ".cache" / "go-build")


async def test_without_the_table_nothing_is_said_or_set(fake: FakeCoordinator, make_daemon: Make) -> None:
    daemon = make_daemon()
    daemon.start()
    job = await run(fake, 1, ["env | grep -c ^GO || true"])
    assert "Go cache" not in job.log
    assert not (daemon.state / "go").exists()


async def test_caches_of_the_go_tools_places_are_served(fake: FakeCoordinator, go_daemon: Make) -> None:
    daemon = go_daemon()
    daemon.start()
    caches = [
        {"key": "go", "paths": ["/go/pkg/mod", ".cache/go-build"], "policy": "pull-push", "when": "on_success"},
        {"key": "both", "paths": ["$GOPATH/pkg/mod/", "web/"], "policy": "pull-push", "when": "on_success"},
    ]
    job = await run(fake, 1, ["mkdir web; echo 1 > web/f"], cache=caches)
    for path in ("/go/pkg/mod", ".cache/go-build", "$GOPATH/pkg/mod/"):
        assert f"Cache path {path} is served by the Go cache, nothing of it is packed" in job.log
    assert "Creating cache both" in job.log
    assert "Creating cache go..." not in job.log
    assert "web/: found 2 matching" in job.log
    only = await run(fake, 2, ["true"], cache=caches[:1])
    assert "Restoring cache" not in only.log


# What a restart leaves


async def test_a_killed_daemon_loses_no_store(fake: FakeCoordinator, go_daemon: Make, tmp_path: Path) -> None:
    """The job goes on with its store; nobody trims it meanwhile, and when it is over it is free."""
    daemon = go_daemon('    max_size = "1KiB"\n')
    daemon.start()
    going = tmp_path / "going"
    script = [f"mkdir -p $GOCACHE/ab; head -c 70000 /dev/zero > $GOCACHE/ab/ab00-d; until [ -e {going} ]; do sleep 0.1; done"]
    script.append('test -e "$GOCACHE/ab/ab00-d"; echo store=$GOCACHE')
    job = add(fake, 1, script)
    await fake.until(lambda: b"until" in job.trace)
    daemon.kill()
    daemon.start()
    other = await run(fake, 2, ["true"])
    assert "warm" in store_line(other)
    third = await run(fake, 3, ["echo store=$GOCACHE"])
    going.touch()
    assert (await ended(job)).state == "success", job.log
    assert printed(third, "store") != printed(job, "store"), "over its size and in use: others begin anew"
    await until(lambda: not Path(printed(job, "store")).exists())


# Whose store it is

# What a job can try to get into the store of another that runs under the same account at the same time: by the paths of the
# host, through what /proc knows of its processes, by entering its namespaces, and by a user namespace of its own.
BREAK_IN = """set +e
plant() {{ for place in "$1"/build "$1"/mod "$1"/go/build; do touch "$place/evil" && echo "evil in $place"; done; }}
for store in {state}/go/*/*/*; do plant "$store"; done
for process in /proc/[0-9]*; do
grep -qs {victim} $process/cmdline || continue
echo found=$process
plant $process/root{target}; plant $process/cwd
for file in $process/fd/*; do plant "$file"; done
nsenter --target=${{process#/proc/}} --mount --user touch {target}/build/evil && echo "evil by nsenter"
unshare --user --map-root-user touch $process/root{target}/build/evil && echo "evil by unshare"
done
true"""
TARGET = "/var/cache/pyrunner/go"


def stores_of(daemon: Daemon, trust: str, project: int = 9) -> list[Path]:
    """Generations on the host."""
    return sorted((daemon.state / "go").glob(f"mounted/*-project-{project}-*-{trust}/*"))


@pytest.mark.parametrize("other", [{"protected": False}, {"protected": True, "project": 8}], ids=["lower-trust", "other-project"])
async def test_nobody_plants_anything_in_the_store_of_another(
    other: dict[str, Any], fake: FakeCoordinator, user_daemon: Make, user: str
) -> None:
    daemon = user_daemon()
    tried = daemon.root / "builds" / "tried"
    wait = f"until [ -e {tried} ]; do sleep 0.1; done; : a-victim-to-be-found"
    script = [f"cd $GOCACHE; touch mine; bash -c '{wait}'", "echo left=$(ls $GOCACHE $GOMODCACHE | tr '\\n' ' ')"]
    victim = add(fake, 1, script, protected=True)
    await fake.until(lambda: b"a-victim" in victim.trace)
    attack = BREAK_IN.format(state=daemon.state, victim="a-victim", target=TARGET)
    attacker = await run(fake, 2, [attack], **other)
    assert "found=/proc/" in attacker.log, "it does see the processes"
    tried.touch()
    shutil.chown(tried, user)
    assert (await ended(victim)).state == "success", victim.log
    assert "evil" not in plain(attacker).replace("/evil", ""), attacker.log
    assert printed(victim, "left").split()[:2] == [f"{TARGET}/build:", "mine"]
    assert "evil" not in printed(victim, "left")
    (store,) = stores_of(daemon, "protected")
    assert not list(store.rglob("evil"))
    assert not list(Path(TARGET).rglob("*/*")), "on the host itself there is nothing"


async def test_what_is_planted_in_a_build_cache_stays_in_its_scope(fake: FakeCoordinator, user_daemon: Make) -> None:
    user_daemon()
    await poison(fake)


async def test_refs_that_are_not_protected_have_a_store_of_their_own(fake: FakeCoordinator, user_daemon: Make) -> None:
    user_daemon()
    keep = "mkdir -p $GOCACHE/ab; echo $CI_JOB_ID > $GOCACHE/ab/ab00-d"
    first = await run(fake, 1, [keep], protected=True)
    assert "scope project/protected, cold (project-9)" in store_line(first)
    pretends = {"CI_COMMIT_REF_PROTECTED": "true"}
    second = await run(fake, 2, [f"echo seen=$(ls $GOCACHE); {keep}"], variables=pretends)
    assert "scope project/unprotected, cold (project-9)" in store_line(second)
    assert printed(second, "seen") == ""
    third = await run(fake, 3, ["echo kept=$(cat $GOCACHE/ab/ab00-d)"], protected=True)
    assert "scope project/protected, warm (project-9)" in store_line(third)
    assert printed(third, "kept") == "1"
    fourth = await run(fake, 4, ["echo kept=$(cat $GOCACHE/ab/ab00-d)"])
    assert printed(fourth, "kept") == "2"


async def test_where_jobs_are_root_a_protected_one_keeps_its_store_for_itself(fake: FakeCoordinator, go_daemon: Make) -> None:
    daemon = go_daemon()
    daemon.start()
    script = ["echo seen=$(ls $GOCACHE); mkdir -p $GOCACHE/ab; touch $GOCACHE/ab/ab00-d; echo store=$GOCACHE"]
    for number in (1, 2):
        job = await run(fake, number, script, protected=True)
        assert "cold (of this job alone, since jobs run under the account of the runner itself)" in store_line(job)
        assert printed(job, "seen") == ""
    await until(lambda: not Path(printed(job, "store")).exists())


async def test_jobs_of_lower_trust_read_the_modules_of_protected_ones(fake: FakeCoordinator, user_daemon: Make) -> None:
    """Without a network: all there is comes from the protected store, and is checked by ``go.sum``."""
    commit = sources(fake, SERVICE)
    daemon = user_daemon('    proxy = "off"\n')
    online = {"GOPROXY": "https://proxy.golang.org,direct"}
    await run(fake, 1, ["go mod download"], commit=commit, protected=True, variables=online)
    (store,) = stores_of(daemon, "protected")
    await until(lambda: list((store / "published").rglob("*.zip")))
    attempt = "{ echo bad > $file && echo spoiled; chmod u+w $file; } || true"
    spoil = f"for file in $(find {TARGET}/proxy -name '*.zip'); do {attempt}; done"
    job = await run(fake, 2, ["go env GOPROXY", "go mod download && go mod verify", spoil], commit=commit)
    assert f"file://{TARGET}/proxy,off" in job.log
    assert "all modules verified" in job.log
    assert "Read-only file system" in job.log
    assert "spoiled" not in plain(job).splitlines()
    second = await run(fake, 3, ["go env GOPROXY"], commit=commit, protected=True)
    assert "\noff" in plain(second), "a protected job reads nothing of others"


async def test_a_group_shares_where_the_table_says_so(fake: FakeCoordinator, go_daemon: Make) -> None:
    daemon = go_daemon('    scope = "namespace"\n    protected = "shared"\n')
    daemon.start()

    async def step(job_id: int, project: int, namespace: int, protected: bool) -> Job:
        info = {"id": job_id, "name": "t", "stage": "t", "project_id": project, "root_namespace_id": namespace}
        payload = add(fake, job_id, ["echo store=$GOCACHE"], protected=protected, job_info=info, project=project)
        return await ended(payload)

    jobs = [await step(1, 1, 5, True), await step(2, 2, 5, False), await step(3, 3, 6, False)]
    places = [printed(job, "store") for job in jobs]
    assert places[0] == places[1] != places[2]
    assert "scope namespace, cold (namespace-5)" in store_line(jobs[0])

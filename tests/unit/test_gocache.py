"""Stores of the Go tool: whose they are, what jobs get of them, and what goes when there is too much."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from executors.base import Mount, Sharing
from executors.docker.connection import Connection
from executors.docker.shared import check_sharing, shared_binds
from executors.errors import PrepareError
from executors.registry import KINDS
from runner.config.load import Loaded, parse
from runner.config.model import GoConfig, RunnerConfig
from runner.coordinator.payload import Cache, JobPayload
from runner.gocache.access import TARGET, GoAccess, access, without_served
from runner.gocache.disk import GoStores
from runner.gocache.generation import Generation
from runner.gocache.measure import Meter
from runner.gocache.publish import publish
from runner.gocache.scope import StoreKey, Trust, group_of, is_declined, is_protected, store_key
from runner.gocache.stores import Claim, Stores
from runner.gocache.trim import HOUR_NS, entries, spared_since_ns
from runner.job.script import frame, go_defaults

RUNNER = '[[runners]]\nname = "a"\nurl = "https://gitlab.example"\ntoken = "glrt-x"\nexecutor = "shell"\n'
DAY_NS = 24 * HOUR_NS


def read(table: str) -> Loaded:
    raw = (RUNNER + "[runners.go]\n" + table).encode()
    return parse(raw, Path("config.toml"), environ={}, executors=KINDS)


def go_of(loaded: Loaded) -> GoConfig:
    assert loaded.config is not None
    return loaded.config.runners[0].go


# The table


def test_the_table_turns_stores_on() -> None:
    assert go_of(read("")) == GoConfig(enabled=True, scope="project", protected="separate", max_size_bytes=20 << 30)
    assert not go_of(read("enabled = false\n")).enabled
    without = parse(RUNNER.encode(), Path("config.toml"), environ={}, executors=KINDS)
    assert not go_of(without).enabled


def test_every_key_is_read() -> None:
    text = 'enabled = true\nscope = "namespace"\nprotected = "shared"\nproxy = "https://p,direct"\nmax_size = "1.5GiB"\n'
    want = GoConfig(enabled=True, scope="namespace", protected="shared", proxy="https://p,direct", max_size_bytes=3 << 29)
    assert go_of(read(text)) == want


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('scope = "group"', "config.toml:7:1: error[bad-value]: \"scope\" is 'group' (one of project, namespace, runner)"),
        ('protected = "no"', "config.toml:7:1: error[bad-value]: \"protected\" is 'no' (one of separate, shared)"),
        ('max_size = "lots"', 'config.toml:7:1: error[bad-size]: "max_size": not a size: \'lots\' (for example "20GiB")'),
    ],
)
def test_what_cannot_be_meant_disables_the_runner(text: str, said: str) -> None:
    loaded = read(text + "\n")
    assert [str(found) for found in loaded.diagnostics] == [said]
    assert loaded.config is not None
    assert loaded.config.runners[0].disabled


# Whose store


def payload(**changes: Any) -> JobPayload:
    known = {"id": 1, "token": "t", "job_info": {"project_id": 9, "project_full_path": "group/sub/project"}}
    return msgspec.convert({**known, **changes}, JobPayload)


def runner(**changes: Any) -> RunnerConfig:
    return RunnerConfig(name="a", url="https://gitlab.example", go=GoConfig(enabled=True, **changes))


def directory(job: JobPayload, entry: RunnerConfig) -> str:
    return store_key(job, entry, account="uid7").directory.removeprefix(f"{group_of(entry)}-")


@pytest.mark.parametrize(
    ("scope", "info", "name"),
    [
        ("project", {}, "project-9"),
        ("namespace", {"root_namespace_id": 4}, "namespace-4"),
        ("namespace", {"project_full_path": "group/sub/project"}, "group-group"),
        ("namespace", {}, "project-9"),
        ("runner", {}, "runner-a"),
        ("runner", {"project_jobs_running_on_instance_runners_count": "+Inf"}, "runner-a"),
        ("runner", {"project_jobs_running_on_instance_runners_count": "3"}, "project-9"),
    ],
)
def test_a_scope_is_never_wider_than_what_is_known(scope: str, info: dict[str, Any], name: str) -> None:
    job = payload(job_info={"project_id": 9, **info})
    assert directory(job, runner(scope=scope)) == f"{name}-uid7-unprotected"


def test_names_of_groups_do_not_meet() -> None:
    names = ("a-b", "a_b", "a.b", "ä", "ö", "..", "x" * 80, "x" * 81)
    found = {directory(payload(job_info={"project_full_path": f"{name}/p"}), runner(scope="namespace")) for name in names}
    assert len(found) == len(names)
    assert all("/" not in name and not name.startswith(".") for name in found)


@pytest.mark.parametrize(
    ("said", "variables", "want"),
    [
        (True, [], True),
        (False, ["true"], False),
        (None, ["true"], True),
        (None, ["false", "true"], False),
        (None, [], False),
    ],
)
def test_the_server_says_whether_a_ref_is_protected(said: bool | None, variables: list[str], want: bool) -> None:
    """A job can add a variable of that name, behind the server's own."""
    sent = [{"key": "CI_COMMIT_REF_PROTECTED", "value": value} for value in variables]
    job = payload(git_info={"protected": said}, variables=sent)
    assert is_protected(job) is want
    assert directory(job, runner()).endswith("-protected" if want else "-unprotected")
    assert directory(job, runner(protected="shared")).endswith("-shared")


@pytest.mark.parametrize(("value", "want"), [("off", True), ("false", True), ("on", False), ("", False)])
def test_a_job_may_do_without(value: str, want: bool) -> None:
    assert is_declined(payload(variables=[{"key": "PYRUNNER_GO_CACHE", "value": value}]).variables) is want


# What a job gets


def claim(**changes: Any) -> Claim:
    known = {"place": "/s/1", "name": "project-9", "scope": "project/unprotected", "at_ns": 1}
    return Claim(**{**known, **changes})


def test_a_mounted_store_is_in_the_same_place_for_every_job() -> None:
    found = access(claim(mounted=True, published="/t/published"), GoConfig(), Sharing(uid=7, gid=7), by_image=True)
    assert found.mounts == (
        Mount(source="/s/1/images", target=f"{TARGET}/build", per_image=True),
        Mount(source="/s/1/mod", target=f"{TARGET}/mod"),
        Mount(source="/s/1/path", target=f"{TARGET}/path"),
        Mount(source="/t/published", target=f"{TARGET}/proxy", read_only=True),
    )
    assert dict(found.defaults)["GOCACHE"] == f"{TARGET}/build"
    assert found.proxied == f"{TARGET}/proxy"


def test_the_log_says_which_store_how_big_and_how_warm() -> None:
    big = access(claim(warm=True, size_bytes=5 << 28), GoConfig(), Sharing(), by_image=False)
    assert big.lines == ("Go cache: 1.2 GiB, scope project/unprotected, warm (project-9)",)
    own = access(claim(private=True), GoConfig(), Sharing(problem="it is so"), by_image=False)
    assert own.lines == ("Go cache: 0 B, scope project/unprotected, cold (of this job alone, since it is so)",)


def shell_sees(shell: str, environ: dict[str, str], *, proxied: str = "", proxy: str = "") -> dict[str, str]:
    pairs = [("GOCACHE", "/c"), ("GOPATH", "/p"), ("GOFLAGS", "-modcacherw")] + ([("GOPROXY", proxy)] if proxy else [])
    script = frame(shell, go_defaults(pairs, proxied) + "env -0\n")
    done = subprocess.run([shell], input=script, env={"PATH": "/usr/bin:/bin", **environ}, capture_output=True, check=True)
    return dict(entry.split("=", 1) for entry in done.stdout.decode().split("\0") if "=" in entry)


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_variables_count_where_nothing_else_sets_them(shell: str, tmp_path: Path) -> None:
    (tmp_path / ".config" / "go").mkdir(parents=True)
    found = shell_sees(shell, {"HOME": str(tmp_path)}, proxy="https://p")
    assert (found["GOCACHE"], found["GOFLAGS"], found["GOPATH"]) == ("/c", "-modcacherw", "/p")
    assert (found["GOPROXY"], found["PATH"]) == ("https://p", "/usr/bin:/bin:/p/bin")
    found = shell_sees(shell, {"HOME": str(tmp_path), "GOFLAGS": "", "GOPATH": "/go"}, proxy="https://p")
    assert (found["GOFLAGS"], found["GOPATH"], found["PATH"]) == ("", "/go", "/usr/bin:/bin")
    (tmp_path / ".config" / "go" / "env").write_text("GOPROXY=off\nGOCACHE=/own")
    found = shell_sees(shell, {"HOME": str(tmp_path)}, proxy="https://p", proxied="/m")
    assert "GOPROXY" not in found, "what go env -w has set stays"
    assert "GOCACHE" not in found
    assert not [name for name in found if name.startswith("pyrunner")]


def test_modules_of_the_protected_store_are_asked_first(tmp_path: Path) -> None:
    assert shell_sees("bash", {"HOME": str(tmp_path)}, proxied="/m", proxy="https://p,direct")["GOPROXY"] == (
        "file:///m,https://p,direct"
    )
    usual = shell_sees("bash", {"HOME": str(tmp_path)}, proxied="/m")["GOPROXY"]
    assert usual == "file:///m,https://proxy.golang.org,direct"


# Paths of caches


def split(paths: list[str], variables: dict[str, str] | None = None, *, untracked: bool = False) -> tuple[list[str], list[str]]:
    """What is told, what is packed."""
    known = variables or {}

    def expand(text: str) -> str:
        for name, value in known.items():
            text = text.replace(f"${name}", value)
        return text.replace("$HOME", "").replace("$GOPATH", "")

    before = GoAccess(defaults=(("GOCACHE", "/c"),))
    caches = [Cache(key="k", paths=paths, untracked=untracked)]
    found, kept = without_served(before, caches, variables=known, expand=expand, project="/b/p")
    told = [line.removeprefix("Cache path ").partition(" is served")[0] for line in found.lines]
    return told, [path for cache in kept for path in cache.paths]


@pytest.mark.parametrize(
    "path",
    [
        "/go/pkg/mod",
        "/go/pkg/mod/",
        "/go/pkg/mod/cache",
        "/go/pkg/mod/**/*",
        "$GOPATH/pkg/mod/",
        "${GOPATH}/pkg/mod",
        "$HOME/go/pkg/mod",
        "/root/.cache/go-build",
        "${HOME}/.cache/go-build/",
        ".cache/go-build",
        "./.cache/go-build/",
    ],
)
def test_places_of_the_go_tool_are_served_from_the_store(path: str) -> None:
    assert split([path, "node_modules/"]) == ([path], ["node_modules/"])
    assert split([path]) == ([path], [])


@pytest.mark.parametrize("path", ["/go/pkg", "/go/pkg/module", ".cache", ".go/pkg/mod", "vendor/", "x/.cache/go-build"])
def test_other_places_are_packed(path: str) -> None:
    assert split([path]) == ([], [path])


def test_what_a_job_puts_elsewhere_itself_is_packed() -> None:
    assert split([".cache/go-build"], {"GOCACHE": "/b/p/.cache/go-build"}) == ([], [".cache/go-build"])
    assert split([".m"], {"GOMODCACHE": "/b/p/.m", "GOPATH": "/b/p"}) == ([], [".m"])
    assert split([".go/pkg/mod", "$GOPATH/bin"], {"GOPATH": "/b/p/.go"}) == ([".go/pkg/mod"], ["$GOPATH/bin"])


def test_a_job_without_a_store_packs_everything() -> None:
    caches = [Cache(key="k", paths=["/go/pkg/mod"])]
    found, kept = without_served(GoAccess(), caches, variables={}, expand=str, project="/b/p")
    assert (found.lines, kept) == ((), tuple(caches))


# Stores on the disk

KEY = StoreKey(group="g", scope="project", name="project-9", trust=Trust.UNPROTECTED, account="uid0")
PROTECTED = KEY.trusted()


class House:
    """Stores with a clock of their own, and records of jobs that have them."""

    def __init__(self, root: Path, *, budget_bytes: int = 0) -> None:
        self.root = root
        self.budget_bytes = budget_bytes
        self.now_ns = time.time_ns()
        self.stores = self.again()

    def again(self) -> Stores:
        """What another daemon finds."""
        self.stores = Stores(self.root, budgets=lambda: {"g": self.budget_bytes}, clock_ns=lambda: self.now_ns)
        self.stores.open()
        return self.stores

    def record(self, name: str) -> Path:
        found = self.root / "jobs" / name
        found.mkdir(parents=True, exist_ok=True)
        return found

    async def claim(self, name: str, key: StoreKey = KEY, *, mounted: bool = True) -> Claim:
        return await self.stores.claim(self.record(name), key, mounted=mounted, uid=os.geteuid(), gid=os.getegid())

    async def leave(self, name: str) -> None:
        self.stores.release(self.record(name))
        await self.stores.settle()


def built(place: str, name: str, *, size: int = 8192, age_ns: int = 0) -> Path:
    """A file as the build cache has it."""
    path = Path(place, "build", name[:2], f"{name}-d")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"x" * size)
    stamp = time.time_ns() - age_ns
    os.utime(path, ns=(stamp, stamp))
    return path


def downloaded(place: str, module: str, version: str, *, age_ns: int = 0) -> Path:
    """A version of a module, downloaded and unpacked."""
    base = Path(place, "mod", "cache", "download", module, "@v")
    base.mkdir(parents=True, exist_ok=True)
    stamp = time.time_ns() - age_ns
    for suffix in (".info", ".mod", ".zip", ".ziphash", ".lock"):
        (base / f"{version}{suffix}").write_bytes(b"y" * 4096)
        os.utime(base / f"{version}{suffix}", ns=(stamp, stamp))
    (base / "list").write_text(f"{version}\n")
    unpacked = Path(place, "mod", f"{module}@{version}")
    unpacked.mkdir(parents=True)
    (unpacked / "a.go").write_bytes(b"z" * 4096)
    return unpacked


async def test_a_store_is_cold_once(tmp_path: Path) -> None:
    house = House(tmp_path)
    first = await house.claim("a")
    assert (first.warm, first.size_bytes) == (False, 0)
    built(first.place, "ab01")
    await house.leave("a")
    second = await house.claim("b")
    assert second.place == first.place
    assert second.warm
    assert second.size_bytes >= 8192


async def test_size_is_known_to_a_job_that_follows_at_once(tmp_path: Path) -> None:
    house = House(tmp_path)
    first = await house.claim("a")
    built(first.place, "ab01")
    house.stores.release(house.record("a"))
    assert (await house.claim("b")).size_bytes >= 8192
    house = House(tmp_path / "other")
    first = await house.claim("a")
    built(first.place, "ab01")
    house.stores.release(house.record("a"))
    settling = asyncio.create_task(house.stores.settle())
    await asyncio.sleep(0)
    assert (await house.claim("b")).size_bytes >= 8192, "while it is being measured"
    await settling


async def test_trust_project_and_account_keep_stores_apart(tmp_path: Path) -> None:
    house = House(tmp_path)
    other = StoreKey(group="g", scope="project", name="project-8", trust=Trust.UNPROTECTED, account="uid0")
    account = StoreKey(group="g", scope="project", name="project-9", trust=Trust.UNPROTECTED, account="uid5")
    keys = (KEY, PROTECTED, other, account)
    places = {(await house.claim(f"job-{number}", key)).place for number, key in enumerate(keys)}
    assert len(places) == len(keys)


async def test_nobody_finds_the_way_into_mounted_stores(tmp_path: Path) -> None:
    house = House(tmp_path)
    found = await house.claim("a")
    above = [directory for directory in Path(found.place).parents if directory.is_relative_to(tmp_path)]
    assert any(directory.stat().st_mode & 0o077 == 0 for directory in above)


async def test_a_protected_job_that_others_can_reach_keeps_its_store_for_itself(tmp_path: Path) -> None:
    house = House(tmp_path)
    first = await house.claim("a", PROTECTED, mounted=False)
    assert first.private
    built(first.place, "ab01")
    second = await house.claim("b", PROTECTED, mounted=False)
    assert second.place != first.place
    await house.leave("a")
    assert not Path(first.place).exists()
    assert Path(second.place).exists()
    assert not (await house.claim("c", PROTECTED, mounted=False)).warm


async def test_claims_of_adopted_jobs_stay_and_those_of_dead_ones_go(tmp_path: Path) -> None:
    house = House(tmp_path, budget_bytes=1)
    adopted, dead = await house.claim("adopted"), await house.claim("dead")
    private = await house.claim("dead-protected", PROTECTED, mounted=False)
    built(adopted.place, "ab01")
    house.now_ns += DAY_NS
    await house.leave("dead")
    (house.record("dead-protected") / "go-store.json").unlink()
    house.again()
    assert await house.claim("adopted") == adopted
    await house.stores.settle()
    assert Path(adopted.place).is_dir()
    assert not Path(private.place).exists()
    assert (await house.claim("new")).place != adopted.place, "over its budget and in use: the next jobs begin anew"
    await house.leave("adopted")
    assert not Path(adopted.place).exists()
    assert dead.place == adopted.place


async def test_the_oldest_goes_first(tmp_path: Path) -> None:
    house = House(tmp_path, budget_bytes=220_000)
    found = await house.claim("a")
    files = [built(found.place, f"{number:02x}00", size=65536, age_ns=(10 - number) * HOUR_NS) for number in range(4)]
    module = downloaded(found.place, "example.com/m", "v1.0.0", age_ns=20 * HOUR_NS)
    await house.leave("a")
    assert [path.exists() for path in files] == [False, False, True, True]
    assert not module.exists()
    base = Path(found.place, "mod", "cache", "download", "example.com", "m", "@v")
    assert sorted(path.name for path in base.iterdir()) == ["list", "v1.0.0.lock"]
    assert (await house.claim("b")).place == found.place


async def test_nothing_goes_that_a_running_job_may_need(tmp_path: Path) -> None:
    house = House(tmp_path, budget_bytes=1)
    first = await house.claim("a")
    old = built(first.place, "aa00", age_ns=30 * HOUR_NS)
    used = built(first.place, "bb00", age_ns=23 * HOUR_NS)
    await house.claim("b")
    await house.leave("b")
    assert not old.exists()
    assert used.exists()


def test_a_long_job_spares_what_it_may_have_seen() -> None:
    now = 1000 * HOUR_NS
    assert spared_since_ns(now, None) == now - DAY_NS
    assert spared_since_ns(now, now - HOUR_NS) == now - DAY_NS
    assert spared_since_ns(now, now - 40 * HOUR_NS) == now - 42 * HOUR_NS


async def test_a_group_within_its_budget_is_left_alone(tmp_path: Path) -> None:
    house = House(tmp_path, budget_bytes=1 << 30)
    found = await house.claim("a")
    old = built(found.place, "aa00", age_ns=99 * DAY_NS)
    await house.leave("a")
    assert old.exists()


async def test_links_that_a_job_leaves_lead_nowhere(tmp_path: Path) -> None:
    house = House(tmp_path, budget_bytes=1)
    outside = tmp_path / "outside"
    outside.mkdir()
    kept = outside / "aa00-d"
    kept.write_bytes(b"x" * 70000)
    found = await house.claim("a")
    build = Path(found.place, "build")
    (build / "aa").symlink_to(outside)
    (build / "bb").mkdir()
    (build / "bb" / "bb00-d").symlink_to(kept)
    (Path(found.place, "mod") / "cache").symlink_to(outside)
    generation = Generation(Path(found.place))
    meter = Meter()
    assert meter.size_bytes(generation) < 70000
    assert [entry.path for entry in entries(generation, meter)] == []
    await house.leave("a")
    assert kept.exists()


def test_modules_are_published_without_their_lists(tmp_path: Path) -> None:
    generation = Generation(tmp_path / "1")
    generation.make(uid=os.geteuid(), gid=os.getegid())
    downloaded(str(generation.path), "example.com/m", "v1.0.0")
    secret = tmp_path / "secret"
    secret.write_text("s")
    base = generation.path / "mod" / "cache" / "download" / "example.com" / "m" / "@v"
    (base / "v2.0.0.zip").symlink_to(secret)
    assert publish(generation) == 3
    found = generation.path / "published" / "example.com" / "m" / "@v"
    assert sorted(path.name for path in found.iterdir()) == ["v1.0.0.info", "v1.0.0.mod", "v1.0.0.zip"]
    assert publish(generation) == 0


async def test_only_jobs_of_lower_trust_read_what_is_published(tmp_path: Path) -> None:
    house = House(tmp_path)
    trusted = await house.claim("a", PROTECTED)
    downloaded(trusted.place, "example.com/m", "v1.0.0")
    await house.leave("a")
    assert (await house.claim("b")).published == f"{trusted.place}/published"
    assert (await house.claim("c", PROTECTED)).published == ""


def test_sizes_are_those_of_the_disk(tmp_path: Path) -> None:
    generation = Generation(tmp_path / "1")
    generation.make(uid=None, gid=None)
    meter = Meter()
    empty = meter.size_bytes(generation)
    path = built(str(generation.path), "ab01", size=1 << 20)
    assert meter.size_bytes(generation) - empty >= 1 << 20
    old_ns = time.time_ns() - HOUR_NS
    os.utime(path.parent, ns=(old_ns, old_ns))
    full = meter.size_bytes(generation)
    built(str(generation.path), "ab02", size=1 << 20)
    assert meter.size_bytes(generation) - full >= 1 << 20, "a directory that has changed is looked at again"


# Containers


def test_a_container_gets_the_directory_of_its_image(tmp_path: Path) -> None:
    mounts = (
        Mount(source=str(tmp_path), target="/c/build", per_image=True),
        Mount(source="/s/mod", target="/c/mod"),
        Mount(source="/s/published", target="/c/proxy", read_only=True),
    )
    image = tmp_path / "0123456789abcdef"
    want = (f"{image}:/c/build:rw", "/s/mod:/c/mod:rw", "/s/published:/c/proxy:ro")
    assert shared_binds(mounts, "sha256:0123456789abcdef0123", taken=[]) == want
    assert image.stat().st_mode & 0o777 == 0o777
    assert shared_binds(mounts, "sha256:0123456789abcdef0123", taken=["/c/mod"]) == (want[0], want[2])


def test_an_engine_elsewhere_shares_no_directories(tmp_path: Path) -> None:
    with pytest.raises(PrepareError, match="tcp://build:2376 does not see"):
        check_sharing(Connection(host="tcp://build:2376"))
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "s"))
        sock.listen()
        check_sharing(Connection(host=f"unix://{tmp_path}/s"))
    with pytest.raises(PrepareError, match="connect unix://"):
        check_sharing(Connection(host=f"unix://{tmp_path}/none"))


# The disk budget


async def test_stores_are_a_kind_of_the_disk_budget(tmp_path: Path) -> None:
    house = House(tmp_path)
    busy, free = await house.claim("a"), await house.claim("b", PROTECTED)
    for place in (busy.place, free.place):
        built(place, "ab01", size=1 << 20)
    await house.leave("b")
    kind = GoStores(house.stores)
    found = {item.name: item for item in await kind.items()}
    assert found[free.place].size_bytes >= 1 << 20
    assert found[free.place].last_used_ns == house.now_ns
    assert (found[busy.place].in_use, found[free.place].in_use) == (True, False)
    await kind.take_away(list(found.values()))
    assert (Path(busy.place).exists(), Path(free.place).exists()) == (True, False)
    assert not (await house.claim("c", PROTECTED)).warm
    await kind.sweep()
    left = [path.name for path in Path(free.place).parent.iterdir()]
    assert left == ["1"], "the new one"


async def test_a_deep_tree_without_permissions_goes_too(tmp_path: Path) -> None:
    house = House(tmp_path)
    found = await house.claim("a", PROTECTED, mounted=False)
    at = os.open(Path(found.place) / "mod", os.O_RDONLY)
    for _ in range(100):
        os.mkdir("d", dir_fd=at)
        inner = os.open("d", os.O_RDONLY, dir_fd=at)
        os.fchmod(at, 0o500)
        os.close(at)
        at = inner
    os.close(at)
    await house.leave("a")
    assert not Path(found.place).exists()
    assert list(Path(found.place).parent.iterdir()) == []

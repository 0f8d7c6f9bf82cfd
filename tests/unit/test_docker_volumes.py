"""Volumes of a job: what entries mean and which volumes come of them."""

from __future__ import annotations

import pytest

from executors.docker.config import DockerConfig
from executors.docker.names import Names
from executors.docker.volumes import Entry, Volumes, is_protected, parse_entry, plan_volumes, shares_builds
from executors.errors import InvalidSpec, PrepareError

NAMES = Names(unique="runner-x-project-1-concurrent-0", attempt="0" * 16, store="e" * 32, network="n")


def plan(*volumes: str, keeps_builds: bool = True, protected: bool = False, **settings: object) -> Volumes:
    table = DockerConfig.from_values({"volumes": list(volumes), **settings})
    return plan_volumes(
        table,
        NAMES,
        expand=lambda text: text.replace("$NAME", "n1"),
        builds_dir="/builds",
        keeps_builds=keeps_builds,
        protected=protected,
    )


@pytest.mark.parametrize(
    ("text", "entry"),
    [
        ("/cache", Entry(source="", destination="/cache")),
        ("/host:/dst", Entry(source="/host", destination="/dst")),
        ("/host:/dst:ro", Entry(source="/host", destination="/dst", options=("ro",))),
        ("/host:/dst:O", Entry(source="/host", destination="/dst", options=("O",))),
        ("name:/dst:rw,z", Entry(source="name", destination="/dst", options=("rw", "z"))),
        ("/host:/dst:ro:Z:rslave", Entry(source="/host", destination="/dst", options=("ro", "Z", "rslave"))),
        ("/host:/dst:shared", Entry(source="/host", destination="/dst", options=("shared",))),
        ("/with space:/d s t", Entry(source="/with space", destination="/d s t")),
        ("/dst:ro", Entry(source="", destination="/dst", options=("ro",))),
    ],
)
def test_entry_is_read(text: str, entry: Entry) -> None:
    assert parse_entry(text) == entry


@pytest.mark.parametrize("text", ["", "cache", "/a:/b:ro,unknown", "./x:/b", "/a:b", "/a:/b:/c", "C:\\x:/b", "/a*:/b", "/a:/b:"])
def test_entry_that_cannot_be_read_is_named(text: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_entry(text)
    assert str(caught.value) == f'invalid volume specification: "{text}"'


def test_entries_come_in_their_order_with_the_builds_behind() -> None:
    found = plan("/cache", "name:/named", "/srv:/host:ro")
    assert [mount.destination for mount in found.mounts] == ["/cache", "/named", "/host", "/builds"]
    assert found.binds[1:3] == ("name:/named", "/srv:/host:ro")


def test_a_path_alone_is_a_volume_that_stays() -> None:
    (cache, builds) = plan("/cache").made
    assert cache.name == f"runner-{'e' * 32}-cache-3c3f060a0374fc8bc39395164f415a70"
    assert cache.reusable
    assert builds.reusable


def test_volumes_of_protected_refs_are_others() -> None:
    assert {mount.name for mount in plan("/cache").made}.isdisjoint(mount.name for mount in plan("/cache", protected=True).made)


def test_builds_go_with_the_job_unless_they_are_fetched_into() -> None:
    found = plan("/cache", keeps_builds=False)
    assert found.temporary == (f"runner-x-project-1-concurrent-0-{'0' * 16}-cache-c33bcaa1fd2c77edfc3893b41966cea8",)


def test_an_entry_for_the_builds_decides_over_them() -> None:
    found = plan("/builds", keeps_builds=False)
    assert len(found.mounts) == 1
    assert found.mounts[0].reusable


def test_without_cache_every_volume_goes_with_the_job() -> None:
    found = plan("/data", disable_cache=True)
    assert len(found.temporary) == len(found.made) == 2


def test_cache_dir_makes_host_directories_of_paths() -> None:
    found = plan("/data", cache_dir="/srv/cache/", keeps_builds=False, protected=True)
    assert found.binds[0] == f"/srv/cache/runner-{'e' * 32}/4caa791091d21d23e63637080226f370-protected:/data"
    assert found.open_to_all == ("/builds",)


def test_variables_are_expanded_in_destinations_only() -> None:
    assert plan("/srv/$NAME:/dst/$NAME").binds[0] == "/srv/$NAME:/dst/n1"


@pytest.mark.parametrize(
    ("volumes", "text"),
    [
        (["/x", "/x/"], 'adding cache volume: updating managed volumes list: volume for container path "/x" is already defined'),
        (["/x", "/h:/x"], 'adding host volume: updating managed volumes list: volume for container path "/x" is already defined'),
        (["/h:/"], "adding host volume: defining absolute path: build directory needs to be a non-root path"),
        (["/a/.."], "adding cache volume: defining absolute path: build directory needs to be a non-root path"),
    ],
)
def test_entries_that_cannot_be_used_are_errors_of_the_preparation(volumes: list[str], text: str) -> None:
    with pytest.raises(PrepareError) as caught:
        plan(*volumes)
    assert str(caught.value) == text


def test_a_long_entry_is_refused_at_once() -> None:
    """Nothing in the grammar may look at a text again and again."""
    with pytest.raises(InvalidSpec):
        parse_entry("/" + "a/" * 50_000 + "|")


@pytest.mark.parametrize(
    ("volumes", "shared"),
    [
        (["/host:/builds"], True),
        (["name:/builds/"], True),
        (["/host:/builds/x"], False),
        (["/builds"], False),
        (["/host:/bui"], False),
        (["/host:/other", "bad::"], False),
    ],
)
def test_builds_on_the_host_are_shared(volumes: list[str], shared: bool) -> None:
    assert shares_builds(volumes, "/builds") is shared


def test_builds_below_a_mounted_parent_are_shared() -> None:
    assert shares_builds(["/host:/data"], "/data/builds")


@pytest.mark.parametrize(
    ("ref", "keys", "protected"),
    [
        (False, [], False),
        (True, [], True),
        (False, ["k"], False),
        (False, ["k-non_protected"], False),
        (False, ["k", "k-protected"], True),
        (True, ["k-non_protected"], True),
    ],
)
def test_ref_and_cache_keys_decide_on_protection(ref: bool, keys: list[str], protected: bool) -> None:
    assert is_protected(ref=ref, cache_keys=keys) is protected

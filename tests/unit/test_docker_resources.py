"""Values of the configuration as the engine takes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from executors.docker import resources
from executors.errors import ExecutorError, InvalidSpec, PrepareError


@pytest.mark.parametrize(
    ("text", "nano"), [("", 0), ("2", 2 * 10**9), ("0.5", 5 * 10**8), ("1/2", 5 * 10**8), (".25", 25 * 10**7), ("1e-1", 10**8)]
)
def test_cpus_are_rational_numbers(text: str, nano: int) -> None:
    assert resources.nano_cpus(text) == nano


@pytest.mark.parametrize("text", ["half", "1/0", "1/2/3", " 1", "1_0", "nan", "inf"])
def test_cpus_that_are_no_number_are_refused(text: str) -> None:
    with pytest.raises(ExecutorError) as caught:
        resources.nano_cpus(text)
    assert str(caught.value) == f"failed to parse {text} as a rational number"


def test_cpus_finer_than_a_billionth_are_refused() -> None:
    with pytest.raises(ExecutorError, match="too precise"):
        resources.nano_cpus("1/3")


@pytest.mark.parametrize(
    ("entry", "device"),
    [
        ("/dev/x", ("/dev/x", "/dev/x", "rwm")),
        ("/dev/x:/dev/y", ("/dev/x", "/dev/y", "rwm")),
        ("/dev/x:/dev/y:r", ("/dev/x", "/dev/y", "r")),
    ],
)
def test_devices_have_three_parts(entry: str, device: tuple[str, str, str]) -> None:
    (found,) = resources.devices([entry])
    assert (found["PathOnHost"], found["PathInContainer"], found["CgroupPermissions"]) == device


def test_device_with_a_fourth_part_is_refused() -> None:
    with pytest.raises(PrepareError) as caught:
        resources.devices(["/dev/zero:/dev/z:r:x"])
    assert str(caught.value) == 'failed to parse device string "/dev/zero:/dev/z:r:x": too many colons'


@pytest.mark.parametrize(
    ("text", "request_"),
    [
        ("all", {"Count": -1}),
        ("2", {"Count": 2}),
        ("device=0", {"DeviceIDs": ["0"]}),
        ("device=0,1", {"DeviceIDs": ["0", "1"]}),
        ('"device=0,1"', {"DeviceIDs": ["0", "1"]}),
        ("count=all,driver=nvidia", {"Count": -1, "Driver": "nvidia"}),
        ('"capabilities=compute,utility"', {"Count": 1, "Capabilities": [["compute", "utility", "gpu"]]}),
        ('all,"options=a=b,c=d"', {"Count": -1, "Options": {"a": "b", "c": "d"}}),
    ],
)
def test_gpus_are_read_as_the_client_of_docker_reads_them(text: str, request_: dict[str, object]) -> None:
    empty = {"Driver": "", "Count": 0, "DeviceIDs": None, "Capabilities": [["gpu"]], "Options": {}}
    assert resources.gpu_requests(text) == [{**empty, **request_}]


@pytest.mark.parametrize("text", ["many", "count=x", "driver=a,driver=b", "colour=red"])
def test_gpus_that_make_no_sense_are_refused(text: str) -> None:
    with pytest.raises(ExecutorError, match=text.split(",")[0]):
        resources.gpu_requests(text)


def test_no_gpus_are_asked_for_by_default() -> None:
    assert resources.gpu_requests("") == []


def test_limits_have_a_soft_and_a_hard_value() -> None:
    assert resources.ulimits({"nofile": "1000:2000", "nproc": "9"}) == [
        {"Name": "nofile", "Soft": 1000, "Hard": 2000},
        {"Name": "nproc", "Soft": 9, "Hard": 9},
    ]


def test_limit_that_is_no_number_is_refused() -> None:
    with pytest.raises(ExecutorError, match="ulimit nofile"):
        resources.ulimits({"nofile": "lots"})


def test_name_servers_are_addresses() -> None:
    assert resources.name_servers(["10.0.0.1", "fe80::1"]) == ["10.0.0.1", "fe80::1"]
    with pytest.raises(InvalidSpec) as caught:
        resources.name_servers(["not-an-ip"])
    assert str(caught.value) == 'invalid DNS server address "not-an-ip": ParseAddr("not-an-ip"): unable to parse IP'


def test_only_two_options_of_the_log_driver_may_be_set() -> None:
    assert resources.log_options({"env": "A", "labels": "b"}) == {"env": "A", "labels": "b"}
    with pytest.raises(InvalidSpec) as caught:
        resources.log_options({"max-size": "10m", "env": "X", "compress": "x"})
    text = 'invalid log options: only ["env" "labels"] are allowed, but found: ["compress" "max-size"]'
    assert str(caught.value) == f"creating docker log configuration: {text}"


def test_isolation_is_one_of_three() -> None:
    with pytest.raises(ExecutorError) as caught:
        resources.isolation("nosuch")
    valid = "the valid values are: 'process', 'hyperv', 'default' and an empty string"
    assert str(caught.value) == f'the isolation value "nosuch" is not valid. {valid}'


@pytest.mark.parametrize("text", ["92:d0:c6:0a:29:33", "92-d0-c6-0a-29-33", "92d0.c60a.2933"])
def test_mac_addresses_are_passed_on(text: str) -> None:
    assert resources.mac_address(text) == text


def test_mac_address_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidSpec, match="zz:zz"):
        resources.mac_address("zz:zz")


def test_seccomp_profile_is_read_on_the_side_of_the_runner(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text('{ "defaultAction": "SCMP_ACT_ALLOW" }')
    (found,) = resources.security_options([f"seccomp={profile}"])
    assert json.loads(found.removeprefix("seccomp=")) == {"defaultAction": "SCMP_ACT_ALLOW"}


@pytest.mark.parametrize(
    "text", ["seccomp=unconfined", "seccomp=builtin", 'seccomp={"a":1}', "no-new-privileges", "label=disable"]
)
def test_other_security_options_stay_as_they_are(text: str) -> None:
    assert resources.security_options([text]) == [text]


def test_seccomp_profile_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none.json"
    with pytest.raises(ExecutorError) as caught:
        resources.security_options([f"seccomp={path}"])
    what = "processing security options: failed to read seccomp profile from"
    assert str(caught.value) == f"{what} {path}: open {path}: no such file or directory"


def test_seccomp_profile_that_is_not_json_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bad.json"
    path.write_text("nothing")
    with pytest.raises(ExecutorError, match="not JSON"):
        resources.security_options([f"seccomp={path}"])

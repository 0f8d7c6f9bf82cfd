"""``[runners.docker]``: every key is read, and what cannot be used is named with its place."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from executors.docker.config import DockerConfig, ServiceConfig, size_bytes
from executors.registry import Kind
from runner.config.load import Loaded, parse
from runner.config.model import RunnerConfig, runner_from_json, runner_to_json
from runner.config.tables import table_keys
from tests.contract import golden


def nothing(_: object) -> Any:
    raise AssertionError("configuration is read without building an executor")


KIND = Kind(name="docker", title="Docker", load=nothing, table="docker", config=lambda: DockerConfig)
RUNNER = '[[runners]]\nname = "a"\nurl = "https://gitlab.example"\ntoken = "glrt-x"\nexecutor = "docker"\n'
OTHER = RUNNER.replace("glrt-x", "glrt-y")
# The keys of DX-1 with a value that is not the default.
EVERY = """
host = "unix:///run/x.sock"
tls_cert_path = "/certs"
tls_verify = true
hostname = "h"
image = "ruby:3"
runtime = "runc"
memory = "512m"
memory_swap = "-1"
memory_reservation = "1.5 GiB"
cgroup_parent = "/p"
cpuset_cpus = "0-1"
cpuset_mems = "0"
cpus = "1/2"
cpu_shares = 512
dns = ["1.1.1.1"]
dns_search = ["x"]
privileged = true
services_privileged = false
disable_entrypoint_overwrite = true
user = "1000"
allowed_users = ["root"]
group_add = ["audio"]
userns_mode = "host"
cap_add = ["NET_ADMIN"]
cap_drop = ["ALL"]
oom_kill_disable = true
oom_score_adjust = 100
security_opt = ["seccomp=unconfined"]
services_security_opt = ["label=disable"]
devices = ["/dev/kvm"]
device_cgroup_rules = ["c 1:3 r"]
gpus = "all"
disable_cache = true
volumes = ["/cache", "/a:/b:ro"]
volume_keep = true
volume_driver = "local"
cache_dir = "/c"
extra_hosts = ["h:1.2.3.4"]
volumes_from = ["c:ro"]
network_mode = "bridge"
pid_mode = "host"
ipcmode = "host"
mac_address = "92:d0:c6:0a:29:33"
links = ["a:b"]
services_limit = 3
service_memory = "256M"
service_memory_swap = "1g"
service_memory_reservation = "64k"
service_cgroup_parent = "/s"
service_slot_cgroup_template = "x/${slot}"
service_cpuset_cpus = "0"
service_cpus = "0.5"
service_cpu_shares = 7
service_gpus = "1"
wait_for_services_timeout = -1
allowed_images = ["a/*"]
allowed_privileged_images = ["a/*"]
allowed_privileged_services = ["b/*"]
allowed_pull_policies = ["always", "never"]
allowed_services = ["b:*"]
pull_policy = ["always", "if-not-present"]
isolation = "default"
shm_size = 300000
helper_image = "h:1"
helper_image_flavor = "ubuntu"
enable_ipv6 = true
network_mtu = 1400
[runners.docker.volume_driver_ops]
size = "1g"
[runners.docker.services_devices]
"alpine:*" = ["/dev/null"]
[runners.docker.tmpfs]
"/T" = "rw"
[runners.docker.services_tmpfs]
"/s" = "rw"
[runners.docker.sysctls]
"net.x" = "1"
[runners.docker.container_labels]
Team = "$X"
[runners.docker.ulimit]
nofile = "1:2"
[runners.docker.log_options]
env = "A"
[[runners.docker.services]]
name = "redis:7"
alias = "r s"
command = ["c"]
entrypoint = ["e"]
environment = ["A=b"]
suspend_data_path = "/d"
[[runners.docker.services]]
name = "second"
"""


def read(text: str) -> Loaded:
    return parse(text.encode(), Path("config.toml"), environ={}, executors={"docker": KIND})


def first(loaded: Loaded) -> RunnerConfig:
    assert loaded.config is not None
    return loaded.config.runners[0]


def table(runner: RunnerConfig) -> DockerConfig:
    return DockerConfig.from_values(runner.tables["docker"])


def test_every_key_is_read_and_survives_the_record_of_a_job() -> None:
    loaded = read(RUNNER + "[runners.docker]" + EVERY)
    runner = first(loaded)
    assert runner.disabled is None
    raw = tomllib.loads(EVERY.replace("[runners.docker.", "[").replace("[[runners.docker.", "[["))
    assert set(raw) == {key.name for key in table_keys(KIND)}, "a key is missing here"
    config = table(runner_from_json(runner_to_json(runner)))
    default = DockerConfig()
    assert [name for name in raw if getattr(config, name) == getattr(default, name)] == []
    assert config.services[0] == ServiceConfig(
        name="redis:7",
        alias="r s",
        command=("c",),
        entrypoint=("e",),
        environment=("A=b",),
        suspend_data_path="/d",
    )
    assert config.container_labels == {"Team": "$X"}
    assert config.tmpfs == {"/T": "rw"}
    assert config.services_devices == {"alpine:*": ("/dev/null",)}
    assert config.services_privileged is False
    assert [(found.code, found.line > 0) for found in loaded.diagnostics] == [("bad-value", True)] * 3, "keys without effect"


@pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
def test_flags_and_variables_are_those_of_the_reference() -> None:
    known = golden.read("cli", "cli-commands-and-flags")["commands"]["register"]
    wanted = {about["flag"]: about.get("env", []) for about in known if about["flag"].startswith("--docker-")}
    assert {f"--{key.flag}": [key.env] if key.env else [] for key in table_keys(KIND) if key.flag} == wanted


def test_the_example_has_every_key_that_has_an_effect() -> None:
    document = tomllib.loads((Path(__file__).resolve().parents[2] / "config.toml.example").read_text())
    (example,) = [runner["docker"] for runner in document["runners"] if runner["executor"] == "docker"]
    idle = {"isolation", "helper_image_flavor", "service_slot_cgroup_template"}
    assert set(example) == {key.name for key in table_keys(KIND)} - idle


def test_keys_match_in_any_case_and_one_policy_may_be_a_text() -> None:
    loaded = read(RUNNER + '[runners.docker]\nImage = "x"\nPULL_POLICY = "never"\n')
    assert loaded.diagnostics == ()
    assert table(first(loaded)).image == "x"
    assert table(first(loaded)).pull_policy == ("never",)


def test_unknown_keys_are_named_with_their_place_and_a_suggestion() -> None:
    text = RUNNER + '[runners.docker]\n  imagge = "x"\n[[runners.docker.services]]\n  name = "x"\n  aliass = "y"\n'
    assert [str(found) for found in read(text).diagnostics] == [
        'config.toml:7:3: warning[unknown-key]: "imagge" is not a known key here (did you mean "image"?)',
        'config.toml:10:3: warning[unknown-key]: "aliass" is not a known key here (did you mean "alias"?)',
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        pytest.param(
            'memory = "10apples"',
            'config.toml:7:1: error[bad-value]: "memory" cannot be used: invalid size: '
            "'10apples' is not a number with a unit (b, k, m, g, t)",
            id="size",
        ),
        pytest.param(
            "volumes = 3", 'config.toml:7:1: error[wrong-type]: "volumes" must be a list of strings, not an integer', id="type"
        ),
        pytest.param(
            "services = [3]", 'config.toml:7:1: error[wrong-type]: "services" must be a list of tables, not a list', id="services"
        ),
    ],
)
def test_what_cannot_be_used_disables_its_runner_only(line: str, found: str) -> None:
    loaded = read(f"{RUNNER}[runners.docker]\n{line}\n{OTHER}[runners.docker]\nimage = 'x'\n")
    assert [str(one) for one in loaded.errors] == [found]
    assert loaded.config is not None
    assert [bool(runner.disabled) for runner in loaded.config.runners] == [True, False]


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        pytest.param('pull_policy = "sometimes"', '"sometimes" is no pull policy', id="policy"),
        pytest.param('allowed_images = ["**", "!x/*"]', '"!x/*" excludes nothing', id="negation"),
        pytest.param('allowed_pull_policies = ["never"]', "no image can be had", id="no-policy-left"),
        pytest.param("[[runners.docker.services]]\nalias = 'x'", "a service without a name", id="service"),
        pytest.param('cpus = "half"', '"cpus" will fail jobs: failed to parse half as a rational number', id="cpus"),
        pytest.param('service_cpus = "x"', '"service_cpus" will fail jobs', id="service-cpus"),
        pytest.param('devices = ["a:b:c:d"]', '"devices" will fail jobs: failed to parse device string', id="devices"),
        pytest.param('gpus = "count=x"', '"gpus" will fail jobs', id="gpus"),
        pytest.param('ulimit = { nofile = "x" }', '"ulimit" will fail jobs', id="ulimit"),
        pytest.param('dns = ["x"]', '"dns" will fail jobs: invalid DNS server address "x"', id="dns"),
        pytest.param('mac_address = "x"', '"mac_address" will fail jobs', id="mac"),
        pytest.param('isolation = "x"', '"isolation" will fail jobs', id="isolation"),
        pytest.param('log_options = { max-size = "1" }', '"log_options" will fail jobs', id="log"),
        pytest.param('security_opt = ["seccomp=/no/file"]', '"security_opt" will fail jobs', id="seccomp"),
        pytest.param('volumes = ["a:b"]', '"volumes" will fail jobs: invalid volume specification', id="volumes"),
        pytest.param('services_devices = { "*" = ["a:b:c:d"] }', '"services_devices" will fail jobs', id="services-devices"),
        pytest.param("privileged = true", '"privileged" gives the host to every image', id="privileged"),
        pytest.param("privileged = true", '"privileged" gives the host to every service', id="privileged-services"),
        pytest.param("services_privileged = true", '"services_privileged" gives the host', id="services-privileged"),
        pytest.param('pid_mode = "host"', '"pid_mode" gives the host to every image', id="pid"),
        pytest.param('userns_mode = "host"', '"userns_mode" gives the host to every image', id="userns"),
        pytest.param(
            'volumes = ["/var/run/docker.sock:/var/run/docker.sock"]', '"volumes" gives the host to every image', id="socket"
        ),
    ],
)
def test_what_will_fail_jobs_is_a_warning(lines: str, text: str) -> None:
    loaded = read(f"{RUNNER}[runners.docker]\n{lines}\n")
    assert [found.text for found in loaded.diagnostics if text in found.text]
    assert loaded.errors == []
    assert first(loaded).disabled is None


@pytest.mark.parametrize(
    "lines",
    [
        'privileged = true\nallowed_images = ["x"]\nallowed_services = ["x"]',
        'privileged = true\nservices_privileged = false\nallowed_privileged_images = ["docker:*"]',
        'services_privileged = true\nallowed_privileged_services = ["docker:*-dind-rootless"]',
        'pid_mode = "host"\nuserns_mode = "host"\nvolumes = ["/run/docker.sock:/run/docker.sock"]\nallowed_images = ["x"]',
    ],
)
def test_what_is_narrowed_is_no_open_door(lines: str) -> None:
    assert read(f"{RUNNER}[runners.docker]\n{lines}\n").diagnostics == ()


def test_the_table_of_another_executor_is_left_alone() -> None:
    text = RUNNER.replace('"docker"', '"shell"') + '[runners.docker]\nmemory = "10apples"\n'
    loaded = parse(
        text.encode(), Path("c"), environ={}, executors={"docker": KIND, "shell": Kind(name="shell", title="S", load=nothing)}
    )
    assert loaded.diagnostics == ()


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", 0),
        ("-1", -1),
        ("1024", 1024),
        ("10b", 10),
        ("2k", 2048),
        ("1.5m", 1572864),
        ("1GiB", 1 << 30),
        ("1 GB", 1 << 30),
        ("1t", 1 << 40),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["apples", "10apples", "m", "1.2.3m", "10 mbb", "-5m", "1e3", "10bb", "1,5g"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match="invalid size"):
        size_bytes(text)


@pytest.mark.parametrize(
    ("given", "volumes"),
    [
        ({}, ["/cache"]),
        ({"volumes": ["/a:/b"]}, ["/a:/b", "/cache"]),
        ({"volumes": ["/x:/cache:ro"]}, ["/x:/cache:ro", "/cache"]),
        ({"volumes": ["/x:/cache"]}, ["/x:/cache"]),
        ({"volumes": ["/cache"]}, ["/cache"]),
        ({"disable_cache": True}, None),
    ],
)
def test_registering_adds_a_cache_volume(given: dict[str, Any], volumes: list[str] | None) -> None:
    assert DockerConfig.completed(given).get("volumes") == volumes

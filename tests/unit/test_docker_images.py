"""Names of images, what is allowed, which policies remain, who is to blame, and how pulls are joined."""

from __future__ import annotations

import asyncio

import pytest

from executors.docker.config import DockerConfig
from executors.docker.errors import EngineUnreachable
from executors.docker.images import Blame, PullFailed, Pulls, blame
from executors.docker.lines import KeptLines, Level
from executors.docker.policy import Platform, build_image, check_allowed, effective_policies, matches_any, parse_platform
from executors.docker.progress import EVERY_S, FIRST_S, PullProgress
from executors.docker.reference import InvalidReference, Reference, familiar_name, parse_reference
from executors.errors import ExecutorError, InvalidSpec

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("listed", "name"),
    [
        ("ruby:3", "ruby:3"),
        ("docker.io/library/ruby:3", "ruby:3"),
        ("docker.io/group/ruby:3", "group/ruby:3"),
        ("docker.io/library/group/ruby:3", "library/group/ruby:3"),
        (f"docker.io/library/ruby@{DIGEST}", f"ruby@{DIGEST}"),
        ("localhost/ruby:3", "localhost/ruby:3"),
        ("r.example/library/ruby:3", "r.example/library/ruby:3"),
    ],
)
def test_names_of_podman_are_those_of_docker(listed: str, name: str) -> None:
    assert familiar_name(listed) == name


@pytest.mark.parametrize(
    ("name", "familiar", "version"),
    [
        ("ruby", "ruby", "latest"),
        ("ruby:3.3", "ruby", "3.3"),
        ("library/ruby", "ruby", "latest"),
        ("group/ruby:x", "group/ruby", "x"),
        ("docker.io/library/ruby:3", "ruby", "3"),
        ("index.docker.io/group/ruby", "group/ruby", "latest"),
        ("localhost/ruby", "localhost/ruby", "latest"),
        ("localhost:5000/a/b/c:1", "localhost:5000/a/b/c", "1"),
        ("Registry.example.com/a", "Registry.example.com/a", "latest"),
        ("[::1]:5000/a:1", "[::1]:5000/a", "1"),
        (f"ruby@{DIGEST}", "ruby", DIGEST),
        (f"r.example/a/ruby:3@{DIGEST}", "r.example/a/ruby", DIGEST),
    ],
)
def test_a_reference_is_what_is_pulled(name: str, familiar: str, version: str) -> None:
    found = parse_reference(name)
    assert (found.familiar, found.version) == (familiar, version)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("UPPER:x y", "invalid reference format: repository name (library/UPPER) must be lowercase"),
        ("a:x y", "invalid reference format"),
        ("", "invalid reference format"),
        ("../../containers/x", "invalid reference format"),
        ("a/../b", "invalid reference format"),
        ("http://x/y", "invalid reference format"),
        ("a?b", "invalid reference format"),
        ("a\n", "invalid reference format"),
        (f"a@{DIGEST[:20]}", "invalid reference format"),
        ("a/" * 128 + "b", "repository name must not be more than 255 characters"),
        ("a" * 64, f"invalid repository name ({'a' * 64}), cannot specify 64-byte hexadecimal strings"),
    ],
)
def test_what_is_no_reference(name: str, text: str) -> None:
    with pytest.raises(InvalidReference) as caught:
        parse_reference(name)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("pattern", "takes", "refuses"),
    [
        ("*", ["ruby", "ruby:2.1"], ["library/ruby", "my.registry.tld/ruby"]),
        ("**/*", ["ruby", "library/ruby:2.1", "my.registry.tld/group/ruby"], []),
        ("**", ["ruby", "library/ruby:2.1"], []),
        ("**/*:*", ["library/ruby:2.1", "ruby:2.1"], ["library/ruby"]),
        ("my.registry.tld/*/*", ["my.registry.tld/library/ruby:2.1"], ["my.registry.tld/group/subgroup/ruby"]),
        (
            "my.registry.tld/**/*:*",
            ["my.registry.tld/group/subgroup/ruby:2.1"],
            ["my.registry.tld/group/subgroup/ruby", "other/my.registry.tld/a:1"],
        ),
        ("ruby:3", ["ruby:3"], ["docker.io/library/ruby:3", "ruby:3.1", "xruby:3"]),
        ("{ruby,go}:[1-3]", ["ruby:1", "go:3"], ["go:4", "rust:1"]),
        ("ruby:?", ["ruby:1"], ["ruby:10", "ruby:"]),
        ("[", [], ["[", "a"]),
        ("!x", ["!x"], ["a", "x"]),
    ],
)
def test_patterns_of_images(pattern: str, takes: list[str], refuses: list[str]) -> None:
    assert [name for name in takes + refuses if matches_any([pattern], name)] == takes


def test_an_image_that_is_not_allowed_is_refused_in_the_words_of_the_reference() -> None:
    lines = KeptLines()
    with pytest.raises(InvalidSpec, match=r"^disallowed image$"):
        check_allowed("busybox:local", ["debian*", "x/*"], always=["default:1"], what="images", lines=lines)
    assert lines.kept == [
        (Level.PLAIN, ""),
        (Level.ERROR, 'The "busybox:local" image is not present on list of allowed images:'),
        (Level.PLAIN, "- debian*"),
        (Level.PLAIN, "- x/*"),
        (Level.PLAIN, ""),
        (
            Level.PLAIN,
            (
                "Please check runner's allowed_images configuration: "
                "https://docs.gitlab.com/runner/configuration/advanced-configuration/"
            ),
        ),
    ]


@pytest.mark.parametrize(("name", "patterns"), [("busybox:local", []), ("debian:12", ["debian*"]), ("default:1", ["debian*"])])
def test_what_is_allowed_needs_no_line(name: str, patterns: list[str]) -> None:
    lines = KeptLines()
    check_allowed(name, patterns, always=["default:1"], what="images", lines=lines)
    assert lines.kept == []


def test_the_image_of_a_job_or_the_default() -> None:
    lines = KeptLines()
    assert build_image("a", "b", lines) == "a"
    assert lines.kept == []
    assert build_image("", "b", lines) == "b"
    assert lines.kept == [(Level.INFO, "Using default image")]
    with pytest.raises(ExecutorError, match=r"^no Docker image specified to run the build in$"):
        build_image("", "", lines)


@pytest.mark.parametrize(
    ("asked", "configured", "allowed", "effective"),
    [
        ([], [], [], "always"),
        ([], ["if-not-present"], [], "if-not-present"),
        ([], ["always", "always"], [], "always always"),
        (["never"], ["if-not-present"], ["never"], "never"),
        (["never", "always", "if-not-present"], ["if-not-present"], ["if-not-present", "never"], "never if-not-present"),
        (["always", "always"], ["always"], [], "always always"),
    ],
)
def test_effective_policies(asked: list[str], configured: list[str], allowed: list[str], effective: str) -> None:
    config = DockerConfig(pull_policy=tuple(configured), allowed_pull_policies=tuple(allowed))
    assert effective_policies("i", asked, config) == tuple(effective.split())


@pytest.mark.parametrize(
    ("asked", "configured", "allowed", "text"),
    [
        (
            ["never"],
            ["if-not-present"],
            [],
            (
                'invalid pull policy for image "i": pull_policy ([never]) defined in GitLab pipeline config '
                "is not one of the allowed_pull_policies ([if-not-present])"
            ),
        ),
        (
            ["sometimes"],
            ["if-not-present"],
            [],
            (
                'invalid pull policy for image "i": pull_policy ([sometimes]) defined in GitLab pipeline config '
                "is not one of the allowed_pull_policies ([if-not-present])"
            ),
        ),
        (
            [],
            ["if-not-present"],
            ["never"],
            (
                'invalid pull policy for image "i": pull_policy ([if-not-present]) defined in Runner config '
                "is not one of the allowed_pull_policies ([never])"
            ),
        ),
        (
            [],
            [],
            ["if-not-present", "never"],
            (
                'invalid pull policy for image "i": pull_policy ([always]) defined in Runner config (default) '
                "is not one of the allowed_pull_policies ([if-not-present never])"
            ),
        ),
    ],
    ids=["job", "unknown-of-job", "configured", "default"],
)
def test_no_policy_left_names_its_source(asked: list[str], configured: list[str], allowed: list[str], text: str) -> None:
    config = DockerConfig(pull_policy=tuple(configured), allowed_pull_policies=tuple(allowed))
    with pytest.raises(InvalidSpec) as caught:
        effective_policies("i", asked, config)
    assert str(caught.value) == text


@pytest.mark.parametrize("key", ["pull_policy", "allowed_pull_policies"])
def test_an_unknown_policy_of_the_configuration(key: str) -> None:
    config = DockerConfig.from_values({key: ["never", "sometimes"]})
    with pytest.raises(ExecutorError) as caught:
        effective_policies("i", [], config)
    assert str(caught.value) == f'unsupported {key} config: "sometimes"'


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("linux/amd64", "linux/amd64"),
        ("linux/arm64/v8", "linux/arm64"),
        ("Linux/x86_64", "linux/amd64"),
        ("arm64", "linux/arm64"),
        ("armhf", "linux/arm/v7"),
        ("linux/arm/6", "linux/arm/v6"),
        ("linux/386", "linux/386"),
    ],
)
def test_platforms(text: str, found: str) -> None:
    assert str(parse_platform(text)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a/b/c/d", '"a/b/c/d": cannot parse platform specifier: invalid argument'),
        ("nonsense", '"nonsense": unknown operating system or architecture: invalid argument'),
        ("linux/a b", '"a b" is an invalid component of "linux/a b": invalid argument'),
        ("linux/", '"" is an invalid component of "linux/": invalid argument'),
    ],
)
def test_what_is_no_platform(text: str, message: str) -> None:
    with pytest.raises(InvalidSpec) as caught:
        parse_platform(text)
    assert str(caught.value) == message


def test_no_platform() -> None:
    assert parse_platform("") is None
    assert str(Platform(os="linux", architecture="arm", variant="v7")) == "linux/arm/v7"


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ('Get "http://127.0.0.1:9/v2/": dial tcp 127.0.0.1:9: connect: connection refused', Blame.NETWORK),
        ("lookup x: no such host", Blame.NETWORK),
        ("net/http: TLS handshake timeout", Blame.NETWORK),
        ("read: connection reset by peer", Blame.NETWORK),
        ("manifest for x:1 not found: manifest unknown: manifest unknown", Blame.CONFIGURATION),
        ("unauthorized: authentication required", Blame.CONFIGURATION),
        ("pull access denied for x, repository does not exist or may require 'docker login'", Blame.CONFIGURATION),
        ('Head "http://r/v2/x/manifests/1": no basic auth credentials', Blame.CONFIGURATION),
        # The first list decides.
        ("dial tcp: lookup x: not found", Blame.NETWORK),
        ("filesystem layer verification failed for digest sha256:0", Blame.UNKNOWN),
        ("no space left on device", Blame.UNKNOWN),
    ],
)
def test_blame(message: str, found: Blame) -> None:
    assert blame(message) is found


class Steered:
    """A pull that ends when it is told."""

    def __init__(self) -> None:
        self.begun = 0
        self.gate = asyncio.Event()
        self.error: Exception | None = None

    async def __call__(self) -> None:
        self.begun += 1
        await self.gate.wait()
        if self.error is not None:
            raise self.error


async def settled(*tasks: asyncio.Task[None]) -> list[BaseException | None]:
    return [*await asyncio.gather(*tasks, return_exceptions=True)]


async def until(steered: Steered, begun: int) -> None:
    async with asyncio.timeout(30):
        while steered.begun < begun:
            await asyncio.sleep(0)


async def test_pulls_of_one_image_are_one_pull() -> None:
    pulls, pull = Pulls(), Steered()
    tasks = [asyncio.create_task(pulls.join("a", pull)) for _ in range(5)]
    other = asyncio.create_task(pulls.join("b", pull))
    await until(pull, 2)
    pull.gate.set()
    assert await settled(*tasks, other) == [None] * 6
    assert pull.begun == 2
    await pulls.join("a", pull)
    assert pull.begun == 3, "a later one is another"


@pytest.mark.parametrize("error", [PullFailed("no"), EngineUnreachable("gone")], ids=["refused", "no-engine"])
async def test_a_failed_pull_fails_for_all_who_wait(error: Exception) -> None:
    pulls, pull = Pulls(), Steered()
    pull.error = error
    tasks = [asyncio.create_task(pulls.join("a", pull)) for _ in range(3)]
    await until(pull, 1)
    pull.gate.set()
    assert [(type(found), str(found)) for found in await settled(*tasks)] == [(type(error), str(error))] * 3
    assert pull.begun == 1


async def test_who_waits_takes_over_when_the_job_that_pulls_is_stopped() -> None:
    pulls, pull = Pulls(), Steered()
    first = asyncio.create_task(pulls.join("a", pull))
    await until(pull, 1)
    others = [asyncio.create_task(pulls.join("a", pull)) for _ in range(2)]
    await asyncio.sleep(0)
    first.cancel()
    await until(pull, 2)
    pull.gate.set()
    found = await settled(first, *others)
    assert isinstance(found[0], asyncio.CancelledError)
    assert found[1:] == [None, None]
    assert pull.begun == 2


async def test_a_stopped_job_that_waits_does_not_stop_the_pull() -> None:
    pulls, pull = Pulls(), Steered()
    first = asyncio.create_task(pulls.join("a", pull))
    await until(pull, 1)
    second = asyncio.create_task(pulls.join("a", pull))
    await asyncio.sleep(0)
    second.cancel()
    await settled(second)
    pull.gate.set()
    assert await settled(first) == [None]


def test_a_long_pull_says_how_far_it_is() -> None:
    progress = PullProgress("ruby:3")
    mib = 1 << 20

    def layer(name: str, status: str, current: int = 0, total: int = 0) -> dict[str, object]:
        return {"id": name, "status": status, "progressDetail": {"current": current, "total": total} if total else {}}

    assert progress.feed({"status": "Pulling from library/ruby", "id": "3"}, 100.0) == ""
    assert progress.feed(layer("a", "Already exists"), 101.0) == ""
    assert progress.feed(layer("b", "Downloading", 10 * mib, 40 * mib), 102.0) == ""
    assert progress.feed(layer("c", "Downloading", 5 * mib, 10 * mib), 103.0) == ""
    assert progress.feed(layer("c", "Download complete"), 100.0 + FIRST_S) == (
        "Pulling ruby:3 for 30 s: 1 of 3 layers, 20 of 50 MiB fetched"
    )
    assert progress.feed(layer("c", "Pull complete"), 101.0 + FIRST_S) == ""
    assert progress.feed(layer("b", "Downloading", 30 * mib, 40 * mib), 100.0 + FIRST_S + EVERY_S) == (
        "Pulling ruby:3 for 90 s: 2 of 3 layers, 40 of 50 MiB fetched"
    )


def test_references_are_values() -> None:
    assert parse_reference("a:1") == Reference(registry="docker.io", path="library/a", tag="1")

"""Credentials of registries: which source is for which image, and which programs are run."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from executors.docker.auth import Credentials, Login, RegistryLogins, find_credentials
from executors.docker.lines import KeptLines, Level
from executors.errors import PrepareError

PROGRAM = """#!/bin/sh
echo "$1 $(cat)" >> {calls}
case "$1" in
  list) echo '{{"https://store.example": "lister", "r.example/ns": "lister"}}' ;;
  get) {get} ;;
esac
"""
NONE = RegistryLogins()
KEPT = """echo '{"ServerURL": "x", "Username": "kept", "Secret": "s3cret"}'"""


def auths(**logins: str) -> str:
    """``place="user:password"``; ``__`` in a name is a slash, ``_`` a dot."""
    entries = {
        place.replace("__", "/").replace("_", "."): {"auth": base64.b64encode(login.encode()).decode()}
        for place, login in logins.items()
    }
    return json.dumps({"auths": entries})


def payload(server: str, user: str = "payload") -> Login:
    return Login(username=user, password="pp", server=server)


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def keep(folder: Path, name: str, get: str = KEPT) -> Path:
    """A program that keeps credentials; the file of its calls."""
    calls = folder / f"{name}.calls"
    program = folder / f"docker-credential-{name}"
    program.write_text(PROGRAM.format(calls=calls, get=get))
    program.chmod(0o755)
    return calls


async def find(image: str, home: Path, logins: RegistryLogins = NONE) -> tuple[Credentials | None, KeptLines]:
    lines = KeptLines()
    return await find_credentials(image, logins, home=home, lines=lines), lines


@pytest.mark.parametrize(
    ("server", "image"),
    [
        ("r.example", "r.example/ns/app:1"),
        ("https://r.example/v2/", "r.example/ns/app"),
        ("R.Example", "r.example/ns/app"),
        ("r.example/ns", "r.example/ns/app:1"),
        ("r.example/ns/app:2", "r.example/ns/app:1"),
        ("r.example:5000", "r.example:5000/app@sha256:" + "0" * 64),
        ("https://index.docker.io/v1/", "ruby"),
        ("docker.io", "group/ruby:3"),
        ("index.docker.io", "docker.io/library/ruby"),
    ],
)
async def test_a_login_is_for_every_image_below_its_place(server: str, image: str, tmp_path: Path) -> None:
    found, lines = await find(image, tmp_path, RegistryLogins(payload=(payload(server),)))
    assert found is not None
    assert found.login.username == "payload"
    assert lines.kept == [(Level.PLAIN, "Authenticating with credentials from job payload (GitLab Registry)")]


@pytest.mark.parametrize(
    ("server", "image"),
    [
        ("r.example", "r.example.org/app"),
        ("r.example", "r.example:5000/app"),
        ("r.example/ns", "r.example/nsx/app"),
        ("r.example", "app"),
        ("docker.io", "localhost/app"),
    ],
)
async def test_and_for_no_other(server: str, image: str, tmp_path: Path) -> None:
    found, lines = await find(image, tmp_path, RegistryLogins(payload=(payload(server),)))
    assert found is None
    assert lines.kept == []


async def test_the_longest_path_wins_and_of_equal_ones_the_first_source(tmp_path: Path) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(auths(r_example="file:f", r_example__ns="file:f"))
    logins = RegistryLogins(
        variable=auths(r_example="variable:v"),
        payload=(payload("r.example"), payload("r.example/ns/deep"), payload("r.example/ns/deep", "second")),
    )
    users = {}
    for image in ("r.example/x", "r.example/ns/x", "r.example/ns/deep/x"):
        found, _ = await find(image, tmp_path, logins)
        assert found is not None
        users[image] = (found.login.username, found.source)
    assert users == {
        "r.example/x": ("variable", "$DOCKER_AUTH_CONFIG"),
        "r.example/ns/x": ("file", f"{tmp_path}/.docker/config.json"),
        "r.example/ns/deep/x": ("payload", "job payload (GitLab Registry)"),
    }


async def test_the_old_file_counts_where_there_is_no_other(tmp_path: Path) -> None:
    entry = json.loads(auths(r_example="old:o"))["auths"]
    (tmp_path / ".dockercfg").write_text(json.dumps(entry))
    found, _ = await find("r.example/x", tmp_path)
    assert found is not None
    assert (found.login.username, found.login.password, found.source) == ("old", "o", f"{tmp_path}/.dockercfg")
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text("{}")
    assert (await find("r.example/x", tmp_path))[0] is None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{broken", "it is not JSON (line 1, column 2)"),
        ("[]", "it is not a JSON object"),
        ('{"auths": []}', ""),
        ('{"auths": {"r.example": 3}}', 'an entry of "auths" is not a JSON object'),
        ('{"auths": {"r.example": {"auth": "§"}}}', 'an "auth" is not base64'),
        ('{"auths": {"r.example": {"auth": "c2VjcmV0"}}}', "invalid auth configuration file"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
async def test_a_source_that_cannot_be_read_is_named_and_passed_over(text: str, why: str, tmp_path: Path) -> None:
    found, lines = await find("r.example/x", tmp_path, RegistryLogins(variable=text, payload=(payload("r.example"),)))
    assert found is not None
    assert found.login.username == "payload"
    warning = f"Failed to resolve credentials from $DOCKER_AUTH_CONFIG: {why}. Credentials from this source will not be used."
    expected = [(Level.WARNING, warning)] if why else []
    assert lines.kept == [*expected, (Level.PLAIN, "Authenticating with credentials from job payload (GitLab Registry)")]


@pytest.mark.parametrize("text", ['{"credsStore": "x"}', '{"credHelpers": {"r.example": "x"}}', '{"credsStore": "../../x"}'])
async def test_a_jobs_variable_runs_no_program(text: str, tmp_path: Path, programs: Path) -> None:
    calls = keep(programs, "x")
    found, lines = await find("r.example/x", tmp_path, RegistryLogins(variable=text, payload=(payload("r.example"),)))
    assert found is not None
    assert found.source == "job payload (GitLab Registry)"
    assert [level for level, _ in lines.kept] == [Level.WARNING, Level.PLAIN]
    assert not calls.exists()


async def test_the_runners_own_variable_and_file_may(tmp_path: Path, programs: Path) -> None:
    calls = keep(programs, "x")
    text = '{"credHelpers": {"r.example": "x"}}'
    found, _ = await find("r.example/a/b:1", tmp_path, RegistryLogins(variable=text, is_runners_own=True))
    assert found is not None
    assert (found.login.username, found.login.password) == ("kept", "s3cret")
    assert calls.read_text() == "get r.example\n"
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker" / "config.json").write_text(text)
    found, _ = await find("r.example/a", tmp_path)
    assert found is not None
    assert found.source == f"{tmp_path}/.docker/config.json"


async def test_a_store_lists_its_servers_and_helpers_go_over_it(tmp_path: Path, programs: Path) -> None:
    store, helper = keep(programs, "store"), keep(programs, "helper", KEPT.replace("kept", "helped"))
    text = json.dumps({"credsStore": "store", "credHelpers": {"r.example/ns": "helper"}})
    logins = RegistryLogins(variable=text, is_runners_own=True)
    users = []
    for image in ("store.example/app", "r.example/ns/app", "r.example/app"):
        found, _ = await find(image, tmp_path, logins)
        users.append(found and found.login.username)
    assert users == ["kept", "helped", None]
    assert "get https://store.example\n" in store.read_text(), "asked by the name that it lists"
    assert helper.read_text() == "get r.example/ns\n"


@pytest.mark.parametrize(
    ("get", "why"),
    [
        ("echo broken; exit 3", "error getting credentials - err: exit status 3, out: `broken`"),
        ("echo nonsense", "it is not JSON (line 1, column 1)"),
    ],
)
async def test_a_program_that_fails_is_named(get: str, why: str, tmp_path: Path, programs: Path) -> None:
    keep(programs, "x", get)
    logins = RegistryLogins(variable='{"credHelpers": {"r.example": "x"}}', is_runners_own=True)
    found, lines = await find("r.example/x", tmp_path, logins)
    assert found is None
    assert [text for _, text in lines.kept] == [
        f"Failed to resolve credentials from $DOCKER_AUTH_CONFIG: {why}. Credentials from this source will not be used."
    ]


async def test_a_program_without_this_credential_is_no_failure(tmp_path: Path, programs: Path) -> None:
    keep(programs, "x", "echo credentials not found in native keychain; exit 1")
    logins = RegistryLogins(variable='{"credHelpers": {"r.example": "x"}}', is_runners_own=True)
    found, lines = await find("r.example/x", tmp_path, logins)
    assert found is None
    assert lines.kept == []


async def test_a_program_that_is_missing_is_named_as_the_reference_does(tmp_path: Path, programs: Path) -> None:
    logins = RegistryLogins(variable='{"credHelpers": {"r.example": "gold-missing"}}', is_runners_own=True)
    _, lines = await find("r.example/x", tmp_path, logins)
    assert [text for _, text in lines.kept] == [
        (
            "Failed to resolve credentials from $DOCKER_AUTH_CONFIG: error getting credentials - err: exec: "
            '"docker-credential-gold-missing": executable file not found in $PATH, out: ``. '
            "Credentials from this source will not be used."
        )
    ]


async def test_the_runner_names_programs_not_paths(tmp_path: Path) -> None:
    logins = RegistryLogins(variable='{"credsStore": "../../gold/x"}', is_runners_own=True)
    with pytest.raises(PrepareError, match=r"^path traversal is not allowed$"):
        await find("r.example/x", tmp_path, logins)


async def test_an_identity_token_is_sent_as_one(tmp_path: Path, programs: Path) -> None:
    keep(programs, "x", KEPT.replace("kept", "<token>"))
    logins = RegistryLogins(variable='{"credHelpers": {"r.example": "x"}}', is_runners_own=True)
    found, _ = await find("r.example/x", tmp_path, logins)
    assert found is not None
    assert json.loads(base64.urlsafe_b64decode(found.login.header())) == {
        "identitytoken": "s3cret",
        "serveraddress": "r.example",
    }


def test_secrets_are_in_no_representation() -> None:
    login = Login(username="u", password="s3cret", identity_token="s3cret", registry_token="s3cret")
    logins = RegistryLogins(variable="s3cret", payload=(login,))
    assert "s3cret" not in repr((login, logins, Credentials(login=login, source="x")))

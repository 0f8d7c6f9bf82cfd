"""The configuration file: reading, findings, edits in place."""

from __future__ import annotations

import ctypes
import os
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from executors.registry import KINDS
from runner.config import edit
from runner.config.duration import format_duration, parse_duration
from runner.config.load import Loaded, load, parse
from runner.config.model import Config, DaemonSettings, runner_from_json, runner_to_json
from runner.config.system_id import PATTERN, load_system_id
from runner.errors import ConfigInvalid

ROOT = Path(__file__).resolve().parents[2]
RUNNER = '[[runners]]\nname = "a"\nurl = "https://gitlab.example"\ntoken = "glrt-x"\nexecutor = "shell"\n'


def read(text: str | bytes, **environ: str) -> Loaded:
    raw = text.encode() if isinstance(text, str) else text
    return parse(raw, Path("config.toml"), environ=environ, executors=KINDS)


def codes(loaded: Loaded) -> list[str]:
    return [found.code for found in loaded.diagnostics]


def test_the_example_has_no_findings() -> None:
    loaded = read((ROOT / "config.toml.example").read_bytes())
    assert [str(found) for found in loaded.diagnostics] == []
    assert loaded.config is not None
    assert loaded.config.runners


@pytest.mark.parametrize(
    ("text", "seconds"), [("1h30m", 5400), ("1.5h", 5400), ("90s", 90), ("-1s", -1), ("100ms", 0.1), ("0", 0), (".5s", 0.5)]
)
def test_durations_are_read_as_go_does(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize("text", ["", "10", "1d", "1 h", "h", "1h30", "s1"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"), [(3600, "1h0m0s"), (90.5, "1m30.5s"), (0, "0s"), (0.1, "100ms"), (2.5, "2.5s"), (-5, "-5s")]
)
def test_durations_are_written_as_go_does(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


def test_unknown_keys_are_named_with_their_place_and_a_suggestion() -> None:
    loaded = read("concurrent = 2\n\n" + RUNNER + '  buids_dir = "/b"\n')
    assert [str(found) for found in loaded.diagnostics] == [
        'config.toml:8:3: warning[unknown-key]: "buids_dir" is not a known key here (did you mean "builds_dir"?)'
    ]
    assert loaded.config is not None
    assert loaded.config.runners[0].disabled is None


def test_keys_match_in_any_case_and_bom_and_crlf_are_fine() -> None:
    text = ("\ufeffConcurrent = 4\n" + RUNNER + "Limit = 3\n").replace("\n", "\r\n")
    loaded = read(text)
    assert loaded.config is not None
    assert (loaded.config.concurrent, loaded.config.runners[0].limit) == (4, 3)


def test_one_bad_runner_does_not_stop_the_others() -> None:
    bad = RUNNER.replace('"shell"', '"docker+machine"') + "limit = []\n"
    loaded = read(bad + RUNNER.replace("glrt-x", "glrt-y"))
    assert loaded.config is not None
    first, second = loaded.config.runners
    assert first.disabled
    assert second.disabled is None
    assert {"wrong-type", "unsupported-executor"} <= set(codes(loaded))


def test_what_was_certainly_meant_is_accepted_with_a_warning() -> None:
    loaded = read('check_interval = "5"\nconnection_max_age = 900000000000\n' + RUNNER + 'environment = "A=1"\n')
    assert loaded.config is not None
    assert loaded.config.check_interval_s == 5
    assert loaded.config.connection_max_age_s == 900
    assert loaded.config.runners[0].environment == ("A=1",)
    assert sorted(codes(loaded)) == ["bare-integer-duration", "coerced-type", "coerced-type"]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        pytest.param("concurrent = 0\n", "bad-value", id="no-slots"),
        pytest.param('log_level = "loud"\n', "bad-value", id="log-level"),
        pytest.param("a = = 1\n", "syntax", id="syntax"),
        pytest.param("[runners]\n", "wrong-type", id="runners-as-a-table"),
    ],
)
def test_what_makes_the_whole_file_unusable(text: str, code: str) -> None:
    loaded = read(text)
    assert loaded.config is None
    assert code in codes(loaded)


def test_utf16_is_named() -> None:
    loaded = read("concurrent = 1\n".encode("utf-16"))
    assert "UTF-16" in str(loaded.diagnostics[0])


def test_references_are_expanded_and_undefined_ones_disable_the_runner() -> None:
    text = RUNNER.replace('"glrt-x"', '"${TOKEN}"')
    found = read(text, TOKEN="glrt-secret")
    assert found.config is not None
    assert found.config.runners[0].token == "glrt-secret"
    assert found.config.runners[0].token_reference == {"TOKEN"}
    missing = read(text)
    assert "undefined-env" in codes(missing)
    assert "glrt-secret" not in "".join(map(str, found.diagnostics))


def test_a_runner_entry_survives_the_record_of_a_job() -> None:
    loaded = read(RUNNER + '[runners.feature_flags]\nFF_TIMESTAMPS = false\n[runners.docker]\nimage = "x"\n')
    assert loaded.config is not None
    runner = loaded.config.runners[0]
    assert runner_from_json(runner_to_json(runner)) == runner


CONFIG = """# my runners
concurrent = 3 # enough

# the first
[[runners]]
  name = "one"
  url = "$URL" # by reference
  token = "glrt-1"
  unknown_key = 1
  [runners.docker]
    image = "alpine"

# the second
[[runners]]
  name = "two"
  token = "glrt-2"
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    found = tmp_path / "config.toml"
    found.write_text(CONFIG)
    found.chmod(0o640)
    return found


def test_removing_an_entry_takes_its_comment_and_nothing_else(path: Path) -> None:
    edit.remove_runners(path, [0])
    assert path.read_text() == CONFIG[: CONFIG.index("# the first")] + CONFIG[CONFIG.index("# the second") :]
    assert path.stat().st_mode & 0o777 == 0o640
    backup = path.with_name("config.toml.bak")
    assert backup.read_text() == CONFIG
    assert backup.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "text",
    [
        'runners = [{ name = "one" }, { name = "two" }, { name = "three" }]\n',
        '[["runners"]]\nname = "one"\n[["runners"]]\nname = "two"\n[[runners]]\nname = "three"\n',
        (
            '[[runners]]\nname = "one"\npre_build_script = """\n[[runners]]\n"""\n'
            '[[runners]]\nname = "two"\n[[runners]]\nname = "three"\n'
        ),
    ],
    ids=["in a line", "quoted", "a text that looks like a header"],
)
def test_the_entry_that_is_removed_is_the_one_that_was_meant(text: str, tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    edit.remove_runners(path, [1])
    assert [runner["name"] for runner in tomllib.loads(path.read_text())["runners"]] == ["one", "three"]
    edit.remove_runners(path, [0, 1])
    assert tomllib.loads(path.read_text()) == {}


def test_an_entry_that_would_break_the_file_is_not_added(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("runners = []\n")
    with pytest.raises(ConfigInvalid, match="write runners as"):
        edit.append_runner(path, {"name": "x"})
    assert path.read_text() == "runners = []\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_file_in_a_directory_of_somebody_else_is_written_in_place() -> None:
    nobody = 65534

    def save_as_nobody(path: Path) -> None:
        ctypes.CDLL(None).setfsuid(nobody)  # counts for this thread
        edit.save(path, "concurrent = 2\n")

    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(1) as other:
        path = Path(directory, "config.toml")
        path.write_text(CONFIG)
        os.chown(path, nobody, nobody)
        path.parent.chmod(0o755)
        other.submit(save_as_nobody, path).result()
        assert path.read_text() == "concurrent = 2\n"
        with pytest.raises(ConfigInvalid, match="Permission denied"):
            other.submit(save_as_nobody, path.with_name("other.toml")).result()


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "config.toml"
    os.mkfifo(pipe)
    assert edit.why_not_writable(pipe) == f"{pipe}: not a regular file"
    with pytest.raises(ConfigInvalid, match="not a regular file"):
        edit.save(pipe, "")
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ('url = "http://[::1"', "bad-url"),
        ('url = "gitlab.example.com"', "bad-url"),
        ('url = "https://host:99999/"', "bad-url"),
        ('token = "glrt-x "', "odd-token"),
        ('shell = "fish"', "unknown-shell"),
    ],
)
def test_what_cannot_work_is_warned_of_and_disables_nothing(line: str, code: str) -> None:
    key = line.partition(" ")[0]
    usual = [text for text in ('url = "http://x"', 'token = "glrt-x"') if not text.startswith(key)]
    found = read("\n".join(["[[runners]]", 'name = "a"', 'executor = "shell"', *usual, line]))
    assert found.config is not None
    assert found.config.runners[0].disabled is None
    assert [(one.code, one.line) for one in found.diagnostics] == [(code, 4 + len(usual))]


def test_changing_a_value_leaves_the_rest_as_it_is(path: Path) -> None:
    edit.set_runner_values(path, 0, {"token": "glrt-new"})
    assert path.read_text() == CONFIG.replace('"glrt-1"', '"glrt-new"')


def test_entries_that_are_added_at_once_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "conf" / "config.toml"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: edit.append_runner(path, {"name": f"n{number}", "token": f"glrt-{number}"}), range(24)))
    names = [entry["name"] for entry in tomllib.loads(path.read_text())["runners"]]
    assert sorted(names) == sorted(f"n{number}" for number in range(24))


def test_a_new_value_stands_in_line_with_the_others(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    edit.append_runner(path, {"name": "x", "token": "glrt-1", "cache": {"Type": "s3"}})
    edit.set_runner_values(path, 0, {"token_expires_at": 5})
    assert '  token = "glrt-1"\n  token_expires_at = 5\n' in path.read_text()
    assert tomllib.loads(path.read_text())["runners"][0]["cache"] == {"Type": "s3"}


def test_appending_keeps_what_is_there(path: Path) -> None:
    edit.append_runner(path, {"name": 'it\'s "quoted"', "token": "glrt-3", "feature_flags": {"FF_X": True}})
    text = path.read_text()
    assert text.startswith(CONFIG)
    assert tomllib.loads(text)["runners"][2] == {
        "name": 'it\'s "quoted"',
        "token": "glrt-3",
        "feature_flags": {"FF_X": True},
    }


def test_tables_and_lists_of_tables_are_written_below_their_entry() -> None:
    values = {
        "name": "a",
        "docker": {
            "image": "x",
            "sysctls": {"net.x": "1"},
            "services": [{"name": "redis", "alias": "r"}, {"name": "pg", "command": ["a b"]}],
        },
        "empty": [],
    }
    text = edit.runner_text(values)
    assert tomllib.loads(text)["runners"] == [values]
    assert "[[runners.docker.services]]" in text


def test_a_new_file_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new" / "config.toml"
    edit.append_runner(path, {"name": "x"})
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_system_id_is_kept(tmp_path: Path) -> None:
    first = load_system_id(tmp_path / "config.toml")
    assert first.created
    assert PATTERN.fullmatch(first.value)
    assert (tmp_path / ".runner_system_id").stat().st_mode & 0o777 == 0o600
    assert load_system_id(tmp_path / "config.toml").value == first.value
    (tmp_path / ".runner_system_id").write_text("nonsense")
    assert load_system_id(tmp_path / "config.toml").created


@pytest.mark.parametrize(
    ("mode", "token", "codes_found"),
    [(0o644, "glrt-x", ["readable-by-all"]), (0o640, "glrt-x", []), (0o644, "$TOKEN", [])],
    ids=["all", "a group", "no token in it"],
)
def test_a_token_that_everybody_can_read_is_warned_of(mode: int, token: str, codes_found: list[str], tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(RUNNER.replace("glrt-x", token))
    path.chmod(mode)
    loaded = load(path, environ={"TOKEN": "glrt-x"}, executors=KINDS)
    assert codes(loaded) == codes_found
    assert [found.hint for found in loaded.diagnostics] == [f"chmod 600 {path}"] * len(codes_found)


def test_without_a_file_a_user_has_a_state_directory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/me/state")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    found = Config(path=Path("config.toml")).pyrunner
    assert found.state_dir == Path("/home/me/state/pyrunner")
    assert found.control_path == Path("/home/me/state/pyrunner/control.sock")


@pytest.mark.parametrize(
    ("key", "runtime", "path"),
    [
        (None, "/run/user/7", "/run/user/7/pyrunner.sock"),
        (None, "", "/state/control.sock"),
        ("/own/socket", "/run/user/7", "/own/socket"),
        ("", "/run/user/7", None),
    ],
)
def test_where_the_control_socket_of_a_user_is(
    key: str | None, runtime: str, path: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
    found = DaemonSettings(control_socket=key, state_dir=Path("/state")).control_path
    assert found == (Path(path) if path is not None else None)

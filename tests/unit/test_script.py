"""Generated scripts, run by real shells: what a user may rely on (``job-lifecycle.md`` 9.2)."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from runner.job.expansion import expand
from runner.job.script import Commands, change_directory, frame, prelude

SHELLS = ("bash", "sh")


def run(
    tmp_path: Path, shell: str, elements: list[str], *, exports: dict[str, str] | None = None, **flags: bool
) -> tuple[int, str, str]:
    commands = Commands(sections=flags.get("sections", False), exit_check=flags.get("exit_check", False), clock=lambda: 7)
    body = prelude((exports or {}).items(), str(tmp_path / "env"), xtrace=False)
    body += change_directory(str(tmp_path)) + commands.render(elements, "script_step")
    script = tmp_path / "script"
    script.write_bytes(frame(shell, body))
    with script.open("rb") as file:
        done = subprocess.run([shell], stdin=file, capture_output=True, timeout=20)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize(
    ("elements", "code"),
    [
        (["true"], 0),
        (["false", "echo no"], 1),
        (["exit 42"], 42),
        (["exit 0", "false"], 0),
        (["set +e", "false"], 1),
        (["set +e", "false", "true"], 0),
        (["! true", "false && true", "export x=$(false)"], 0),
        (["x=$(false)"], 1),
        (["if true; then", "echo x", "fi"], 0),
        (["echo x", "if true; then"], 2),
        (["nosuchcommand"], 127),
        (["exec true", "false"], 0),
        (["cat; read -r x || true"], 0),
        (["kill -TERM $$; sleep 0.1"], 1),
        (["kill -SEGV $(exec sh -c 'echo $PPID')"], 139),
    ],
    ids=str,
)
def test_exit_codes(shell: str, elements: list[str], code: int, tmp_path: Path) -> None:
    assert run(tmp_path, shell, elements)[0] == code


def test_pipefail_counts_in_bash(tmp_path: Path) -> None:
    assert run(tmp_path, "bash", ["false | true"])[0] == 1


@pytest.mark.parametrize("shell", SHELLS)
def test_every_byte_of_a_value_arrives(shell: str, tmp_path: Path) -> None:
    value = "".join(map(chr, range(1, 128))) + "'\"$`\\!ä€\nend"
    code, _, _ = run(tmp_path, shell, ['printf %s "$V" > out'], exports={"V": value})
    assert code == 0
    assert (tmp_path / "out").read_bytes() == value.encode()


@pytest.mark.parametrize("shell", SHELLS)
def test_the_environment_file_is_never_evaluated(shell: str, tmp_path: Path) -> None:
    (tmp_path / "env").write_text("  A=1  \n\nB=$(touch pwned)\nx-y=2\nno equals\nC=a=b\nD=unterminated")
    code, out, _ = run(tmp_path, shell, ['echo "$A|$B|$C|${D-unset}"'])
    assert code == 0
    assert "1|$(touch pwned)|a=b|unset\n" in out
    assert "x-y is no name for a variable" in out
    assert not (tmp_path / "pwned").exists()


def test_a_killed_shell_does_not_print_the_script(tmp_path: Path) -> None:
    _, out, err = run(tmp_path, "bash", ["kill -SEGV $BASHPID"], exports={"PASSWORD": "it's-a-secret"})
    assert "secret" not in out + err


def test_commands_are_echoed(tmp_path: Path) -> None:
    _, out, _ = run(tmp_path, "bash", ["  echo a  ", "", "for i in 1; do\n  echo $i\ndone"])
    green, reset = "\x1b[32;1m", "\x1b[0;m"
    assert out == f"{green}$ echo a{reset}\na\n\n{green}$ for i in 1; do # collapsed multi-line command{reset}\n1\n"


def test_sections_show_whole_commands(tmp_path: Path) -> None:
    _, out, _ = run(tmp_path, "bash", ["echo a\necho b"], sections=True)
    name = "7:section_script_step_0"
    assert out == (
        f"section_start:{name}[hide_duration=true,collapsed=true]\r\x1b[0K\x1b[32;1m$ echo a\necho b\x1b[0;m\n"
        f"section_end:{name}\r\x1b[0K\na\nb\n"
    )


def test_exit_check_sees_failures_behind_set_plus_e(tmp_path: Path) -> None:
    assert run(tmp_path, "bash", ["set +e", "false", "echo no"], exit_check=True)[0] == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$A-${A}", "1-1"),
        ("$UNKNOWN|${UNKNOWN}", "|"),
        ("$$ ${$}", "$ $"),
        ("$12 $* $#", "2  "),
        ("$/x $é $.X $(cmd) $", "$/x $é $.X $(cmd) $"),
        ("${A:-d}", ""),
        ("${} ${abc", " abc"),
        ("%A%", "%A%"),
    ],
)
def test_expansion(text: str, expected: str) -> None:
    assert expand(text, {"A": "1"}.get) == expected

"""The scripts that a job's shell gets for the user's commands (``job-lifecycle.md`` 9).

The shell reads a file on its standard input. The commands are one text, evaluated in a subshell of it whose input is empty:
``set +e`` in the commands does not reach the outer shell, reading commands cannot swallow the script, and a shell that dies
of a signal leaves one short line instead of the program.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence

from runner.trace.log import CLEAR, GREEN, RESET, YELLOW

_GREEN, _RESET, _YELLOW, _CLEAR = GREEN.decode(), RESET.decode(), YELLOW.decode(), CLEAR.decode()

_FRAME = """\
#!/usr/bin/env {shell}
trap 'exit 1' TERM
{pipefail}set -e
set +C
pyrunner_script={body}
(trap 'exit 1' TERM; eval "$pyrunner_script") </dev/null
exit 0
"""
# A plain POSIX shell may not know the option.
_PIPEFAIL = {"bash": "set -o pipefail\n", "sh": "if (set -o pipefail) 2>/dev/null; then set -o pipefail; fi\n"}

_JOB_ENV = """\
export GITLAB_ENV={path}
: >>"$GITLAB_ENV"
if [ -s "$GITLAB_ENV" ]; then
while read -r pyrunner_line; do
case "${{pyrunner_line%%=*}}" in
"$pyrunner_line") ;;
[A-Za-z_]*[!A-Za-z0-9_]*|[!A-Za-z_]*|"") printf '%s\\n' {before}"GITLAB_ENV: ${{pyrunner_line%%=*}} is no name for a \
variable, the line is skipped"{behind} ;;
*) export "$pyrunner_line" ;;
esac
done <"$GITLAB_ENV"
unset pyrunner_line
fi
"""
# What an account has set by `go env -w` counts like a variable.
_GO_DEFAULTS = """\
pyrunner_known=" "
pyrunner_file=${{GOENV:-${{XDG_CONFIG_HOME:-${{HOME:-}}/.config}}/go/env}}
if [ -f "$pyrunner_file" ] && [ -r "$pyrunner_file" ]; then
while read -r pyrunner_line || [ -n "$pyrunner_line" ]; do
pyrunner_known="$pyrunner_known${{pyrunner_line%%=*}} "
done <"$pyrunner_file"
fi
{lines}unset pyrunner_known pyrunner_file pyrunner_line
"""
USUAL_PROXIES = "https://proxy.golang.org,direct"
_CHECK = "pyrunner_status=$?; if [ $pyrunner_status -ne 0 ]; then exit $pyrunner_status; fi\n"


def quote(text: str) -> str:
    """A word that any POSIX shell reads back as ``text``."""
    return "'" + text.replace("'", "'\\''") + "'"


def frame(shell: str, body: str) -> bytes:
    """The whole script around the commands in ``body``. NUL bytes, which no shell can read, are left out."""
    text = _FRAME.format(shell=shell, pipefail=_PIPEFAIL[shell], body=quote("unset -v pyrunner_script\n" + body))
    return text.replace("\0", "").encode(errors="surrogateescape")


def write_files(folder: str, files: Iterable[tuple[str, str]]) -> str:
    """Private files in a folder of the runner's, by path and content."""
    lines = [f"mkdir -p {quote(folder)}\n"]
    for path, content in files:
        lines.append(f"rm -rf {quote(path)}; (umask 077; printf '%s' {quote(content)} >{quote(path)})\n")
    return "".join(lines)


def go_defaults(defaults: Iterable[tuple[str, str]], proxied: str) -> str:
    """Variables of the Go tool that count where nothing else has set them. ``proxied`` is a directory of modules that is
    asked before whatever proxies there are otherwise, empty for none.

    Programs that land in a ``GOPATH`` of ours are found.
    """
    values = {name: quote(value) for name, value in defaults}
    if proxied:
        usual = values.get("GOPROXY", f'"$(go env GOPROXY 2>/dev/null || echo {USUAL_PROXIES})"')
        values["GOPROXY"] = quote(f"file://{proxied},") + usual
    lines = []
    for name, word in values.items():
        path = '; export PATH="$PATH:$GOPATH/bin"' if name == "GOPATH" else ""
        known = f'"${{{name}+ {name} }}$pyrunner_known"'
        lines.append(f'case {known} in *" {name} "*) ;; *) export {name}={word}{path} ;; esac\n')
    return _GO_DEFAULTS.format(lines="".join(lines)) if lines else ""


def prelude(exports: Iterable[tuple[str, str]], env_file: str, *, xtrace: bool, defaults: str = "") -> str:
    """Variables of the job, then what its earlier scripts wrote into ``GITLAB_ENV``. ``defaults`` come before them."""
    lines = ["set -o xtrace\n"] if xtrace else []
    lines.append(defaults)
    lines += [f"export {name}={quote(value)}\n" for name, value in exports]
    lines.append(_JOB_ENV.format(path=quote(env_file), before=quote(_YELLOW), behind=quote(_RESET)))
    return "".join(lines)


def change_directory(path: str) -> str:
    """Into the project."""
    return f"cd {quote(path)}\n"


def notice(text: str) -> str:
    """A green line of the runner's in the output of a script."""
    return f"printf '%s\\n' {quote(f'{_GREEN}{text}{_RESET}')}\n"


def odd(text: str) -> str:
    """A yellow line, without the word WARNING."""
    return f"printf '%s\\n' {quote(f'{_YELLOW}{text}{_RESET}')}\n"


class Commands:
    """Commands of users with their echo. ``sections`` shows commands of several lines as collapsed sections;
    ``exit_check`` tests the status of every element."""

    def __init__(self, *, sections: bool, exit_check: bool, clock: Callable[[], float] = time.time) -> None:
        self._sections = sections
        self._exit_check = exit_check
        self._clock = clock
        self._counts: dict[str, int] = {}

    def render(self, elements: Sequence[str], prefix: str) -> str:
        """The elements as text; ``prefix`` names their sections."""
        parts: list[str] = []
        for element in elements:
            number = self._counts.get(prefix, 0)
            self._counts[prefix] = number + 1
            command = element.strip()
            parts += (self._echo(command, f"section_{prefix}_{number}"), command or ":", "\n")
            if self._exit_check:
                parts.append(_CHECK)
        return "".join(parts)

    def _echo(self, command: str, section: str) -> str:
        first, newline, _ = command.partition("\n")
        if not command:
            return "printf '\\n'\n"
        if not newline:
            return notice(f"$ {command}")
        if not self._sections:
            return notice(f"$ {first} # collapsed multi-line command")
        seconds = int(self._clock())
        start = f"section_start:{seconds}:{section}[hide_duration=true,collapsed=true]\r{_CLEAR}"
        end = f"section_end:{seconds}:{section}\r{_CLEAR}"
        shown = f"{start}{_GREEN}$ {command}{_RESET}\n{end}"
        return f"printf '%s\\n' {quote(shown)}\n"

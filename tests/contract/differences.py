"""Deliberate differences from the recordings of the reference, each with its reason: the one list of them.

``DIFFERS`` is still replayed and must end as the recording says unless ``ends`` gives another end. ``NOT_YET`` cannot be
replayed, mostly since it needs what this version does not have.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Difference:
    """``ends``: (state, failure_reason, exit_code) where they are not the recording's, one for each job."""

    reason: str
    ends: tuple[tuple[str, str | None, int | None], ...] = ()


SUCCESS = ("success", None, None)
FAILED = ("failed", "script_failure", 1)
ENV_NAMES = "names that are no shell identifiers are skipped with a warning instead of failing the job"
PRIVATE = "file variables are 0600 and are removed at every end"
CUT = "where the log is cut follows from the length of the line that names product and version"
PARSED = "the numbers of lines and the words of parse errors are those of our own frame around the commands"
EARLY = "the first bytes are sent at once, so the server's answer is heard seconds earlier"
STREAMS = "the recording shows the reference's two readers; output of two streams keeps the order in which it was read"
ORDER = "bytes keep their order around a mask"
TRACE = "CI_DEBUG_TRACE traces the commands of the job, not the runner's own work, which is not done by a shell"

# The recordings count patches to say when the server acts, and the reference sends the first one after three seconds. Ours
# come at once, and more of them from a busy machine: these act at what the recorded patch holds, or behind another fault.
MOMENTS: dict[str, dict[int, dict[str, object]]] = {
    "cancel-in-after-script": {0: {"where": "Running after script|end-of-after"}},
    "cancel-then-canceled": {0: {"where": "echo go"}, 1: {"where": "after-4", "skip": 0}},
    "final-412": {1: {"skip": 0, "behind": 0}},
}

DIFFERS: dict[str, Difference] = {
    "debug-trace": Difference(TRACE),
    "trace-debug-true": Difference(TRACE),
    "debug-trace-quoted-mask": Difference(TRACE + "; quoted forms of masked values are masked"),
    "file-variable-key-with-slash": Difference(ENV_NAMES, (SUCCESS,)),
    "variables-odd-names": Difference(ENV_NAMES, (SUCCESS,)),
    "gitlab-env-bad-name": Difference("a bad line of GITLAB_ENV is skipped with a warning"),
    "gitlab-env-blank-line": Difference("a blank line of GITLAB_ENV is skipped", (SUCCESS,)),
    "file-variables-left-after-bad-env": Difference(PRIVATE, (SUCCESS, ("failed", "script_failure", 1))),
    "file-variables-left-after-timeout": Difference(
        PRIVATE, (("failed", "job_execution_timeout", None), ("failed", "script_failure", 1))
    ),
    "variables-flag-precedence": Difference(
        "scripts see the flags that the header names, not what the configuration says of them"
    ),
    "variables-file": Difference(PRIVATE),
    "variables-file-umask": Difference(PRIVATE),
    "get-sources-timeout-attempts": Difference("the limit holds: no further attempts and pauses after it"),
    "limit-continues": Difference(CUT),
    "limit-inside-character": Difference(CUT),
    "limit-log": Difference(CUT),
    "limit-log-failing": Difference(CUT),
    "limit-log-timestamps": Difference(CUT),
    "limit-replacement": Difference(CUT),
    "mask-empty-and-short": Difference("control sequences of the runner survive a mask of one character"),
    "mask-inside-colour-and-section": Difference("names of the runner's own sections survive masks"),
    "mask-longest-over-leftmost": Difference(ORDER),
    "mask-reorders-bytes": Difference(ORDER),
    "mask-multiline-crlf": Difference("a masked value is masked in its quoted form, too"),
    "mask-streams": Difference(STREAMS),
    "prefix-limit-fifteen": Difference("the runner's own token prefixes stay active"),
    "script-background-process": Difference("processes that a script leaves behind are named"),
    "script-exit-codes": Difference(STREAMS),
    "script-return-exec-trap": Difference("commands are echoed by printf, which every shell has alike"),
    "script-shell-options": Difference("a script is the leader of a session of its own"),
    "script-syntax-error": Difference(PARSED),
    "script-unbalanced-quote": Difference(PARSED),
    "script-timeout-child-in-other-session": Difference("everything that a script started is killed"),
    "shell-sh": Difference("any POSIX shell works", (SUCCESS,)),
    "stamp-long-line": Difference("entries of a line without end depend on how its bytes arrive"),
    "subshell-killed-dumps-script": Difference("a killed shell does not print the script"),
    "cancel-by-416": Difference(EARLY),
    "cancel-by-patch": Difference(EARLY),
    "cancel-reason-listed": Difference(EARLY),
    "trace-202-job-status-canceled": Difference(EARLY),
    "trace-202-job-status-failed": Difference(EARLY),
    "keepalive-404": Difference("after_script is not mentioned by a job that has none"),
    "trace-404": Difference("a job that the server does not know is stopped at once", (("failed", "unknown_failure", None),)),
    "payload-undecodable": Difference("a job that cannot be decoded is reported", (("failed", "runner_system_failure", None),)),
    "request-201-wrong-type": Difference(
        "a job that cannot be decoded is reported", (("failed", "runner_system_failure", None),)
    ),
    "trace-409-final-for-good": Difference("the result is reported even where the log is not taken", (SUCCESS,)),
    "trace-416-beyond": Difference("the result is reported even where the log is not taken", (SUCCESS,)),
    "profile-prints": Difference("a login shell, and so its profile, runs for the user's scripts only"),
    "success-timestamps": Difference(STREAMS),
    "job-timeout-in-upload": Difference("no helper program is there to be terminated"),
}

NOT_YET: dict[str, str] = {
    "trace-404-final": "whether the 404 of the first patch comes before the end of the job follows from the machine",
}


@dataclass(frozen=True)
class CliDifference:
    """``requests`` and ``files``: whether those still must be the recording's; ``more`` are keys of a runner that it does
    not have."""

    reason: str
    exit_code: int | None = None
    requests: bool = True
    files: bool = True
    more: tuple[str, ...] = ()


USAGE = "a command line that cannot be understood ends with status 2"
ANY_PLACE = "global options and --config may stand before or after the command"
CLI_DIFFERS: dict[str, CliDifference] = {
    "register-bad-int": CliDifference(USAGE, 2),
    "register-bad-duration": CliDifference(USAGE, 2),
    "register-unknown-flag": CliDifference(USAGE, 2),
    "register-map-flag-without-colon": CliDifference("garbage in a map flag is refused", 2, requests=False, files=False),
    "register-feature-flags-json": CliDifference("a JSON object is accepted", 0, requests=False, files=False),
    "register-from-environment": CliDifference("RUNNER_UNHEALTHY_INTERVAL is not passed over", more=("unhealthy_interval",)),
    "register-map-flag-json-object": CliDifference("a JSON object is accepted", files=False),
    "register-optional-bool-without-value": CliDifference("a flag alone means true", 0, requests=False, files=False),
    "register-bool-with-space": CliDifference("--flag true is accepted, and so reserved", requests=False, files=False),
    "register-bool-with-space-legacy": CliDifference("--flag true is accepted", 0, requests=False, files=False),
    "register-debug-after-command": CliDifference(ANY_PLACE, 0, requests=False, files=False),
    "register-config-as-global-flag": CliDifference(ANY_PLACE, 0, requests=False, files=False),
    "register-twice": CliDifference("a duplicate is not appended", 1, requests=False, files=False),
    "register-rewrites-file": CliDifference("the file is edited in place", files=False),
    "reset-token-all-missing-file": CliDifference("no file is made for nothing", files=False),
}
LATER_EXECUTORS = "this executor is not in this version"
CLI_NOT_YET: dict[str, str] = {
    "register-kubernetes*": LATER_EXECUTORS,
    "register-ssh": LATER_EXECUTORS,
    "register-interactive-ssh": LATER_EXECUTORS,
    "reset-token-pat": "the server of the recording gave no answer to this call",
}

SCHEDULE_DIFFERS: dict[str, str] = {
    "sched-env-token-unset": "a runner whose token refers to an unset variable is not asked with an empty one",
    "sched-limit-1-long-poll": "a turn falls together with the end of a poll, which comes first is chance",
    "sched-request-concurrency-1-long-poll": "a turn falls together with the end of a poll, which comes first is chance",
    "sched-long-poll-starving": "one runner's long poll does not starve another",
}


@dataclass(frozen=True)
class ArtifactDifference:
    """``log``, ``uploads`` and ``requests``: whether those still must be the recording's."""

    reason: str
    ends: tuple[tuple[str, str | None, int | None], ...] = ()
    log: bool = False
    uploads: bool = True
    requests: bool = True


ONCE = "an archive that cannot be made is tried once, before anything is sent, and said in plain words"
REFUSED = "401, 404 and 405 are final: the same upload gets the same answer"
SPECIAL = "sockets, FIFOs and devices are named in a warning instead of being counted"
ARTIFACT_DIFFERS: dict[str, ArtifactDifference] = {
    "artifact-excludes-table": ArtifactDifference("a pattern that leads out is warned of once"),
    "artifact-format-unknown": ArtifactDifference(ONCE),
    "artifact-gzip-directory": ArtifactDifference(ONCE, requests=False),
    "artifact-gzip-link": ArtifactDifference(ONCE, requests=False),
    "artifact-raw-directory": ArtifactDifference(ONCE, requests=False),
    "artifact-raw-two-files": ArtifactDifference(ONCE, requests=False),
    "artifact-metadata": ArtifactDifference(
        "without CI_RUNNER_ID there is a warning instead of a statement", (SUCCESS,), uploads=False, requests=False
    ),
    "artifact-metadata-complete": ArtifactDifference("the statement names this program and its version", log=True, uploads=False),
    "artifact-meter-malformed": ArtifactDifference(
        "a malformed frequency of the meter is a warning", (SUCCESS,), uploads=False, requests=False
    ),
    "artifact-modes": ArtifactDifference(SPECIAL, log=True),
    "artifact-unreadable-and-vanished": ArtifactDifference(SPECIAL, log=True),
    "artifact-patterns-table-1": ArtifactDifference(SPECIAL, log=True),
    "artifact-patterns-table-2": ArtifactDifference(SPECIAL + "; an archive without entries is not sent", requests=False),
    "artifact-path-below-link-out": ArtifactDifference(
        "what lies behind a link out of the project is refused", uploads=False, requests=False
    ),
    "artifact-project-dir-removed": ArtifactDifference("said in plain words"),
    "artifact-upload-401": ArtifactDifference(REFUSED, requests=False),
    "artifact-upload-404": ArtifactDifference(REFUSED, requests=False),
    "artifact-upload-405": ArtifactDifference(REFUSED, requests=False),
    "artifact-upload-503": ArtifactDifference(
        "only the first try goes through the retry layer: ten requests in the same time", requests=False
    ),
    "artifact-upload-debug-trace": ArtifactDifference(TRACE),
    "artifact-download-reset": ArtifactDifference(
        "a request on a kept connection that the server has closed is sent again at once", requests=False
    ),
}
ARTIFACT_NOT_REPLAYED = {
    "artifact-download-direct-other-host": "the store of another name: see test_artifacts.py",
}


# Recordings whose sequence of requests is not compared.
CALLS_DIFFER: dict[str, str] = {
    "job-timeout-in-upload": "an upload that its client gave up has an answer nobody reads",
    "accept-reset": "an update whose connection is cut before the answer is sent once more at once",
}


@dataclass(frozen=True)
class CacheDifference:
    """``log`` and ``files``: whether those still must be the recording's."""

    reason: str
    ends: tuple[tuple[str, str | None, int | None], ...] = ()
    log: bool = False
    files: bool = True


CACHE_DIFFERS: dict[str, CacheDifference] = {
    "cache-concurrent-slots": CacheDifference("what the second job made is saved, too"),
    "cache-patterns-table": CacheDifference(SPECIAL + "; an archive without entries is not made", files=True),
    "cache-transfer-meter-and-settings": CacheDifference("a malformed frequency of the meter is a warning", files=False),
}
CACHE_NOT_REPLAYED: dict[str, str] = {}


@dataclass(frozen=True)
class DaemonDifference:
    """``jobs`` and ``log``: whether those still must be the recording's; ``pages``: patterns of pages that differ."""

    reason: str
    exit_code: int | None = None
    jobs: bool = True
    log: bool = True
    pages: tuple[str, ...] = ()


SAME = "a file with the content that is in force is no change, whatever its time"
STUBBORN = "a script that ignores SIGTERM is killed, and its job reported, within the shutdown timeout"
DAEMON_DIFFERS: dict[str, DaemonDifference] = {
    "reload-touch": DaemonDifference(SAME, log=False),
    "reload-file-removed": DaemonDifference(SAME, log=False),
    "reload-unhealthy-cleared": DaemonDifference(SAME, log=False),
    "reload-broken": DaemonDifference(SAME, log=False),
    "reload-older-mtime": DaemonDifference("a changed file is seen whatever its time", log=False),
    "reload-remove-runner": DaemonDifference("all series of a runner that is gone go", pages=("GET /metrics",)),
    "http-during-forceful": DaemonDifference(STUBBORN, exit_code=0, jobs=False),
    "signal-sigterm-trap-shutdown-timeout": DaemonDifference(STUBBORN, exit_code=0, jobs=False),
    "key-output-limit": DaemonDifference(CUT, log=False),
    "http-endpoints": DaemonDifference("there is a page for liveness", pages=("GET /health/live*",)),
    "key-builds-dir-default": DaemonDifference("the working directory is another one than the recording's", log=False),
}
DAEMON_NOT_REPLAYED: dict[str, str] = {
    "log-403-and-503": "the recording does not say what its server answered",
    "reload-concurrent-zero": "a value that cannot be used is refused, and the daemon goes on with those before",
    "*-docker": "it needs an engine and two images of a registry; draining is the same for every executor",
}


CLEAN = "the configuration and hooks of a repository that a job could write are taken away before it is used again"
OWN_FILES = "files of the runner's are 0600, and its configuration of git is laid out in its own way"
SOURCES_DIFFER: dict[str, Difference] = {
    "git-clean-config-on": Difference(OWN_FILES),
    "git-config-of-a-job": Difference(OWN_FILES),
    "git-urls-without-tokens": Difference(OWN_FILES),
    "directories-tmp": Difference(OWN_FILES),
    "submodules-normal": Difference(OWN_FILES),
    "submodules-force-https": Difference(OWN_FILES),
    "submodules-force-https-port": Difference(OWN_FILES),
    "git-locks": Difference(CLEAN, (SUCCESS, ("failed", "script_failure", 2))),
    "git-planted-config": Difference(CLEAN, (SUCCESS, ("failed", "script_failure", 2))),
    "submodules-clean-flags": Difference(CLEAN),
    "submodules-locks": Difference(CLEAN),
    "submodules-twice": Difference(CLEAN),
    "submodules-unborn-branch": Difference("a submodule on a branch without commits is cloned anew", (SUCCESS, SUCCESS)),
    "git-hooks-of-payload": Difference("the script before the sources lists the directory of the runner"),
    "shell-environment": Difference(DIFFERS["script-shell-options"].reason),
    "shell-background-group": Difference(DIFFERS["script-background-process"].reason),
}
SOURCES_NOT_REPLAYED: dict[str, str] = {}

# Recordings of the custom executor itself.
CUSTOM_DIFFERS: dict[str, Difference] = {
    "custom-environment": Difference("the directory of a job's calls lies in its record, not in /tmp"),
    "custom-stages": Difference("a place without gitlab-runner packs and moves with what it has"),
}
# Recordings of the shell executor, replayed in the place of a driver: what its programs do in another way.
NO_RETRIES = "curl asks once for each try: the retry layer below the tries is the runner's own"
NO_LINKS = "a pattern selects nothing behind a link to a directory"
NO_ROOT = "the project directory itself is no entry of an archive"
RAW_NAMES = "zip writes names that are no ASCII without a mark for UTF-8"
ANEW = "an archive that is unchanged is sent anew: nobody can ask a bucket with an address that is good for sending"
BYTES = "some versions of awk match bytes, not characters"
NO_STATEMENT = "no statement of provenance is made in a place without gitlab-runner"
PLACES_DIFFER: dict[str, Difference] = {
    "artifact-download-500": Difference(NO_RETRIES),
    "artifact-download-store-500": Difference(NO_RETRIES),
    "artifact-exclude-glob": Difference(RAW_NAMES),
    "artifact-excludes-table": Difference("a pattern that leads out is warned of once"),
    "artifact-extract-modes": Difference(NO_ROOT),
    "artifact-extract-link-then-file": Difference("unzip makes links when all files are there"),
    "artifact-extract-link-outside": Difference("unzip gives links no time"),
    "artifact-format-unknown": Difference(ONCE),
    "artifact-glob-dot": Difference(NO_ROOT),
    "artifact-glob-link-dir-inside": Difference(NO_LINKS),
    "artifact-glob-unicode": Difference(RAW_NAMES),
    "artifact-gzip-directory": Difference(ONCE),
    "artifact-gzip-link": Difference(ONCE),
    "artifact-metadata": Difference(NO_STATEMENT, (SUCCESS,)),
    "artifact-metadata-complete": Difference(NO_STATEMENT),
    "artifact-meter-malformed": Difference("there is no transfer meter", (SUCCESS,)),
    "artifact-path-below-link-out": Difference(NO_LINKS),
    "artifact-names": Difference("curl writes quotes and backslashes of file names in a way of its own"),
    "artifact-patterns-table-1": Difference(BYTES),
    "artifact-patterns-table-2": Difference(NO_LINKS),
    "artifact-project-dir-removed": Difference("said in the words of the shell"),
    "artifact-raw-directory": Difference(ONCE),
    "artifact-raw-two-files": Difference(ONCE),
    "artifact-untracked-and-paths": Difference(RAW_NAMES),
    "artifact-upload-302": Difference("an upload follows no redirect that would turn it into a download"),
    "artifact-upload-401": Difference(REFUSED),
    "artifact-upload-404": Difference(REFUSED),
    "artifact-upload-405": Difference(REFUSED),
    "artifact-upload-429": Difference(NO_RETRIES),
    "artifact-upload-500": Difference(NO_RETRIES),
    "artifact-upload-503-then-201": Difference(NO_RETRIES),
    "artifact-upload-debug-trace": Difference(TRACE),
    "cache-concurrent-slots": Difference("what the second job made is saved, too"),
    "cache-key-table": Difference("the reference prints the lines of two streams as it reads them"),
    "cache-patterns-table": Difference(NO_LINKS),
    "cache-s3-hashed": Difference("only the configured scheme of names is looked for", (SUCCESS, FAILED)),
    "cache-s3-save-and-restore": Difference(ANEW),
    "cache-transfer-meter-and-settings": Difference("there is no transfer meter"),
    "cache-unwritable": Difference("paths of caches are shown whole"),
}

# Features that the reference tells GitLab of, and this version does not.
FEATURES_NOT_OFFERED: dict[str, str] = {
    "session": "there is no session server",
    "terminal": "there is no session server",
    "native_steps_integration": "steps of `run:` are not run",
}

"""Caches and artifacts as shell: by GitLab Runner's own program where the place has it, else by :mod:`.tools`.

Both find the job's token in their environment or on their standard input. A remote cache is reached by addresses that are
good for one object and the time of the job.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Iterable, Sequence
from typing import Literal
from urllib.parse import urlencode

from runner.archive.artifacts import DEFAULT_NAME, SUFFIXES
from runner.archive.cache_key import CacheKey
from runner.archive.metadata import utc
from runner.archive.object_store import ObjectStore, StoreError
from runner.coordinator.http import base_url
from runner.coordinator.payload import Artifact, Cache, Dependency
from runner.errors import ArchiveError
from runner.identity import user_agent
from runner.job.cache_keys import PROJECT_STAYS, fallbacks
from runner.job.cache_restore import NO_URL as NO_URL_RESTORE
from runner.job.cache_restore import NOT_THERE
from runner.job.cache_save import NO_URL as NO_URL_SAVE
from runner.job.caches import PULL, PUSH
from runner.job.flags import parse_bool
from runner.job.plan import JobPlan
from runner.job.rendered import tools
from runner.job.rendered.sources import FILES
from runner.job.rendered.words import pattern_word
from runner.job.script import notice, odd, quote

RUNNER = "gitlab-runner"
# What else does, where GitLab Runner's program is missing; alternatives are told apart by a bar.
TO_EXTRACT = ("unzip|bsdtar",)
TO_PACK = ("find", "awk", "zip|bsdtar")
TO_MOVE = ("curl",)
EXTRACTING, CREATING = "Extracting cache", "Creating cache"
UPLOADING, DOWNLOADING = "Uploading artifacts", "Artifacts downloading"


class Archives:
    """Renders the stages of one job. What is asked of the remote store is asked when a stage is rendered."""

    def __init__(self, plan: JobPlan) -> None:
        self._plan = plan
        self._dir = f"{plan.directories.tmp}/.pyrunner"

    # Caches

    async def restore(self, caches: Sequence[Cache]) -> str:
        """Every entry in order; nothing of it fails the stage."""
        remote, lines = self._remote()
        lines += [
            *self._start(tools.UNPACK, tools.CHOOSE, tools.CALL, tools.CACHE_CALLS),
            _RESTORE % {"missing": quote(NOT_THERE)},
        ]
        for cache in caches:
            lines += await self._restore_one(cache, remote)
        return "".join([*lines, *self._end()])

    async def _restore_one(self, cache: Cache, remote: ObjectStore | None) -> list[str]:
        key = self._plan.cache_key(cache.key)
        lines = [odd(key.complaint)] if key.complaint else []
        if not key.stored:
            return [*lines, notice("Skipping cache extraction due to empty cache key")]
        if self._plan.variables.expand(cache.policy) not in PULL:
            return [*lines, notice(f"Not downloading cache {key.shown} due to policy")]
        others, complaints = fallbacks(self._plan, cache)
        lines += [odd(complaint) for complaint in complaints]
        work = ["pyrunner_found=\n"]
        for candidate in [key, *others]:
            address = await self._address(remote, candidate, "GET")
            words = " ".join(quote(word) for word in (self._file(candidate), *address))
            work.append('if [ -z "$pyrunner_found" ]; then\n')
            work.append(notice(f"Checking cache for {candidate.shown}..."))
            work.append(f"if pyrunner_restore {words}; then\n{notice('Successfully extracted cache')}pyrunner_found=1\nelse\n")
            work.append(odd("Failed to extract cache"))
            if self._plan.flags["FF_CLEAN_UP_FAILED_CACHE_EXTRACT"]:
                work += self._clear(cache)
            work.append("fi\nfi\n")
        if remote is not None:
            return [*lines, *_where_possible("", [*TO_EXTRACT, *TO_MOVE], EXTRACTING, work)]
        return [*lines, *_where_possible("cache-extractor", TO_EXTRACT, EXTRACTING, work)]

    def _clear(self, cache: Cache) -> list[str]:
        """Take away what a broken archive may have left of its paths."""
        lines = ["pyrunner_begin\n", *self._patterns(cache.paths, ())]
        lines += [f"printf '\\033[0;mRemoving %s\\n' {quote(path)}\n" for path in cache.paths]
        lines.append('if ! pyrunner_choose silently; then :\nelif [ -e "$pyrunner_dir/whole" ]; then\n')
        lines.append(f"pyrunner_say warning {quote(PROJECT_STAYS)}\nelse\n")
        lines.append('while IFS= read -r pyrunner_file; do pyrunner_remove "$pyrunner_file"; done <"$pyrunner_dir/list"\nfi\n')
        return lines

    async def save(self, caches: Sequence[Cache]) -> str:
        """Every entry that is due; nothing of it fails the stage."""
        remote, lines = self._remote()
        lines += self._start(tools.CHOOSE, tools.PACK, tools.CALL, tools.CACHE_CALLS)
        limit = self._plan.runner.cache.max_uploaded_archive_size
        lines.append(_SAVE % {"limit": limit, "local": quote(NO_URL_SAVE)})
        for cache in caches:
            lines += await self._save_one(cache, remote)
        return "".join([*lines, *self._end()])

    async def _save_one(self, cache: Cache, remote: ObjectStore | None) -> list[str]:
        key = self._plan.cache_key(cache.key)
        lines = [odd(key.complaint)] if key.complaint else []
        if not key.stored:
            return [*lines, notice("Skipping cache archiving due to empty cache key")]
        if self._plan.variables.expand(cache.policy) not in PUSH:
            return [*lines, notice(f"Not uploading cache {key.shown} due to policy")]
        file, address = self._file(key), await self._address(remote, key, "PUT")
        about = json.dumps({"cachekey": key.shown}, separators=(",", ":"))
        words = " ".join(quote(word) for word in (file, about, *address))
        created, failed = notice("Created cache"), odd("Failed to create cache")
        own = [notice(f"Creating cache {key.shown}..."), "pyrunner_begin\n"]
        own += self._patterns(cache.paths, (), untracked=cache.untracked)
        own.append(f"if pyrunner_save {words}; then\n{created}else\n{failed}fi\n")
        paths = "".join(f" --path {quote(path)}" for path in cache.paths) + (" --untracked" if cache.untracked else "")
        program = f"{RUNNER} cache-archiver --file {quote(file)} --timeout {self._cache_minutes()}{paths}"
        theirs = [
            notice(f"Creating cache {key.shown}..."),
            f"if CACHE_METADATA={quote(about)} {program}; then\n{created}else\n{failed}fi\n",
        ]
        if remote is not None:
            return [*lines, *_where_possible("", [*TO_PACK, *TO_MOVE], CREATING, own)]
        return [*lines, *_where_possible("cache-archiver", TO_PACK, CREATING, own, theirs)]

    def _remote(self) -> tuple[ObjectStore | None, list[str]]:
        from runner.archive.buckets import open_bucket

        try:
            return open_bucket(self._plan.runner.cache), []
        except ArchiveError as error:
            return None, [tools.SAY, _say("warning", f"{error}. Caches are stored only locally.")]

    async def _address(self, remote: ObjectStore | None, key: CacheKey, method: Literal["GET", "PUT"]) -> tuple[str, ...]:
        """The signed address of an object, and the one that may be shown."""
        if remote is None:
            return ()
        from runner.job.cache_transfer import object_name_of

        name = object_name_of(self._plan, key)
        try:
            return await remote.signed(name, method, seconds=self._plan.payload.timeout_s), remote.url(name)
        except StoreError:
            return ()

    def _file(self, key: CacheKey) -> str:
        return posixpath.join(self._plan.directories.cache, key.stored, "cache.zip")

    def _cache_minutes(self) -> int:
        return max(round(self._plan.settings.cache_request_timeout_s / 60), 1)

    # Artifacts

    def upload(self, artifacts: Sequence[Artifact]) -> str:
        """Every entry in order; the first that fails ends the stage."""
        lines = self._start(tools.CHOOSE, tools.PACK, tools.CALL, tools.SEND)
        limits = self._plan.runner.artifact
        lines.append(f"pyrunner_limit={max(int(limits.upload_timeout_s), 1)}\n")
        for artifact in artifacts:
            lines += self._upload_one(artifact)
        return "".join([*lines, *self._end()])

    def _upload_one(self, artifact: Artifact) -> list[str]:
        begin = notice("Uploading artifacts...")
        is_stated = parse_bool(self._plan.variables.get("RUNNER_GENERATE_ARTIFACTS_METADATA") or "")
        no_statement = _say("warning", "RUNNER_GENERATE_ARTIFACTS_METADATA: no statement is made in this place")
        kind = f' as "{artifact.artifact_type}"' if artifact.artifact_type else ""
        doing = f"Uploading artifacts{kind} to coordinator..."
        query = {
            "artifact_format": artifact.artifact_format,
            "artifact_type": artifact.artifact_type,
            "expire_in": artifact.expire_in,
        }
        address = f"{self._jobs_url(self._plan.payload.id)}?{urlencode({name: text for name, text in query.items() if text})}"
        archive = f"{self._dir}/archive{SUFFIXES.get(artifact.artifact_format, '') or '.raw'}"
        suffix = SUFFIXES.get(artifact.artifact_format, "")
        own = [begin, *([no_statement] if is_stated else []), *self._login(self._plan.payload.token), "pyrunner_begin\n"]
        own += self._patterns(artifact.paths, artifact.exclude, untracked=artifact.untracked)
        own.append(f"pyrunner_doing={quote(doing)}\nif pyrunner_choose ''; then\n")
        own += pattern_word("pyrunner_name", artifact.name or DEFAULT_NAME, "name")
        own.append('pyrunner_base "$pyrunner_name"\n')
        level = '"${ARTIFACT_COMPRESSION_LEVEL-}"'
        packed = f"pyrunner_pack {quote(artifact.artifact_format or 'zip')} {quote(archive)} {level}"
        sent = f'pyrunner_send {quote(archive)} "$pyrunner_name"{quote(suffix)} {quote(address)} {quote(doing)}'
        own.append(f"if ! {packed} || ! {sent}; then exit 1; fi\n")
        own.append(f"else\n{_say('error', 'No files to upload')}fi\n")
        limits = self._plan.runner.artifact
        options = ["--timeout", f"{limits.upload_timeout_s:g}s"]
        options += ["--response-header-timeout", f"{limits.response_header_timeout_s:g}s"]
        states = is_stated and artifact.artifact_format == "zip"
        options += self._statement() if states else []
        options += ["--name", artifact.name] if artifact.name else []
        for name, texts in (("--path", artifact.paths), ("--exclude", artifact.exclude)):
            options += [word for text in texts for word in (name, text)]
        for name, text in (
            ("--artifact-format", artifact.artifact_format),
            ("--artifact-type", artifact.artifact_type),
            ("--expire-in", artifact.expire_in),
        ):
            options += [name, text] if text else []
        options += ["--untracked"] if artifact.untracked else []
        ended = ' --ended-at "$(date -u +%Y-%m-%dT%H:%M:%SZ)"' if states else ""
        program = self._program("artifacts-uploader", self._plan.payload.id, self._plan.payload.token, options, more=ended)
        theirs = [begin, program]
        return _where_possible("artifacts-uploader", [*TO_PACK, *TO_MOVE], UPLOADING, own, theirs)

    def _statement(self) -> list[str]:
        """What GitLab Runner's program is told of where an archive comes from (13.6); it ends now."""
        plan = self._plan
        facts = {
            "runner-id": plan.variables.get("CI_RUNNER_ID") or "",
            "repo-url": plan.sources().remote.clean_url.removesuffix(".git"),
            "repo-digest": plan.payload.git_info.sha,
            "job-name": plan.payload.job_info.name,
            "executor-name": plan.kind.name,
            "runner-name": plan.runner.name,
            "started-at": utc(plan.record.accepted.accepted_at_ns / 1e9),
            "schema-version": plan.variables.get("SLSA_PROVENANCE_SCHEMA_VERSION") or "unknown",
        }
        words = [word for name, text in facts.items() for word in (f"--{name}", text)]
        words += [word for variable in plan.payload.variables for word in ("--metadata-parameter", variable.key)]
        return ["--generate-artifacts-metadata", *words]

    def download(self, dependencies: Sequence[Dependency]) -> str:
        """Every dependency in order; the first that fails ends the stage."""
        lines = self._start(tools.UNPACK, tools.CALL, tools.GET)
        direct = "1" if self._plan.flags["FF_USE_DIRECT_DOWNLOAD"] else ""
        archive = f"{self._dir}/archive"
        for dependency in dependencies:
            begin = notice(f"Downloading artifacts for {dependency.name} ({dependency.id})...")
            words = f"{quote(self._jobs_url(dependency.id))} {quote(archive)} {quote(direct)}"
            own = [begin, *self._login(dependency.token), '(umask 077; mkdir -p "$pyrunner_dir")\n']
            own.append(f"if ! pyrunner_get {words} || ! pyrunner_unpack {quote(archive)}; then exit 1; fi\n")
            theirs = [begin, self._program("artifacts-downloader", dependency.id, dependency.token, ())]
            lines += _where_possible("artifacts-downloader", [*TO_EXTRACT, *TO_MOVE], DOWNLOADING, own, theirs)
        return "".join([*lines, *self._end()])

    def _program(self, command: str, job_id: int, token: str, options: Iterable[str], more: str = "") -> str:
        """GitLab Runner's program, which finds what is secret in its environment. ``more`` is shell already."""
        environment = {"CI_JOB_ID": str(job_id), "CI_JOB_TOKEN": token, "CI_SERVER_URL": self._plan.runner.url}
        prefix = " ".join(f"{name}={quote(value)}" for name, value in environment.items())
        return f"{prefix} {RUNNER} {command} {' '.join(quote(option) for option in options)}{more}\n"

    def _jobs_url(self, job_id: int) -> str:
        return f"{base_url(self._plan.runner.url)}jobs/{job_id}/artifacts"

    def _login(self, token: str) -> list[str]:
        return [f"pyrunner_login={quote(_in_quotes(token))}\n"]

    # Pieces

    def _start(self, *functions: str) -> list[str]:
        lines = [
            f"pyrunner_dir={quote(self._dir)}\n",
            f"pyrunner_agent={quote(user_agent())}\n",
            "pyrunner_login= pyrunner_limit=3600\n",
        ]
        return [FILES, tools.SAY, *functions, *lines]

    def _end(self) -> list[str]:
        return ['pyrunner_remove "$pyrunner_dir"\n']

    def _patterns(self, paths: Iterable[str], exclude: Iterable[str], *, untracked: bool = False) -> list[str]:
        lines = []
        for letter, texts in (("i", paths), ("x", exclude)):
            for text in texts:
                lines += pattern_word("pyrunner_text", text, "path")
                lines.append(f'pyrunner_pattern {letter} "$pyrunner_text"\n')
        return [*lines, *(["pyrunner_loose\n"] if untracked else [])]


# ``pyrunner_restore <file> [<signed url> <url to show>]``
_RESTORE = (
    """\
pyrunner_restore() {
if [ -n "${2-}" ]; then
pyrunner_begin
pyrunner_fetch "$1" "$2" "$3" || return 1
elif gitlab-runner cache-extractor --help >/dev/null 2>&1; then
gitlab-runner cache-extractor --file "$1"
return
else
pyrunner_begin
pyrunner_say info '"""
    + NO_URL_RESTORE
    + """'
fi
if [ ! -f "$1" ]; then
pyrunner_say warning %(missing)s
return 1
fi
pyrunner_unpack "$1"
}
"""
)
# ``pyrunner_save <file> <what metadata.json says> [<signed url> <url to show>]``: the chosen files.
_SAVE = """\
pyrunner_save() {
if ! pyrunner_choose ''; then
pyrunner_say warning 'No files to cache.'
return 0
fi
pyrunner_sum=$(sort "$pyrunner_dir/list" | cksum)
if pyrunner_unchanged "$1"; then
pyrunner_say info 'Primary cache does not exist remotely, uploading existing archive'
pyrunner_hand_on "$1" "${3-}" "${4-}"
return
fi
case $(printf '%%s' "${CACHE_COMPRESSION_FORMAT-}" | tr '[:upper:]' '[:lower:]') in
tarzstd) pyrunner_format=tarzstd ;;
*) pyrunner_format=zip ;;
esac
if ! pyrunner_why=$(umask 077; mkdir -p "${1%%/*}" 2>&1); then
pyrunner_say fatal "mkdir ${1%%/*}: ${pyrunner_why##*: }"
return 1
fi
(umask 077; pyrunner_pack "$pyrunner_format" "$pyrunner_dir/cache.zip" "${CACHE_COMPRESSION_LEVEL-}") || return 1
cp "$pyrunner_dir/cache.zip" "$1.$$" && chmod 600 "$1.$$" && mv -f -- "$1.$$" "$1" || { rm -f -- "$1.$$"; return 1; }
pyrunner_write "${1%%/*}/metadata.json" "${2%%\\}},\"files\":\"$pyrunner_sum\"}"
pyrunner_hand_on "$1" "${3-}" "${4-}"
}
pyrunner_unchanged() {
[ -f "$1" ] && grep -q -F -e "\"files\":\"$pyrunner_sum\"" "${1%%/*}/metadata.json" 2>/dev/null || return 1
[ -z "$(find . -newer "$1" ! -path '*
*' -print | grep -x -F -f "$pyrunner_dir/list")" ]
}
pyrunner_hand_on() {
if [ -z "$2" ]; then
pyrunner_say info %(local)s
return 0
fi
pyrunner_size=$(wc -c <"$1" | tr -d ' ')
if [ %(limit)d -gt 0 ] && [ "$pyrunner_size" -gt %(limit)d ]; then
pyrunner_say info "Cache archive size ($pyrunner_size) is too big (Limit is set to %(limit)d). Cache will be stored only locally."
return 0
fi
pyrunner_store "$1" "$2" "$3"
}
"""


def _where_possible(
    command: str, needed: Iterable[str], what: str, own: Sequence[str], theirs: Sequence[str] | None = None
) -> list[str]:
    """Work for the first that can do it; one line where nobody can. ``own`` does for both where there is no ``theirs``."""
    lines = []
    if command:
        test = f"{RUNNER} {command} --help >/dev/null 2>&1"
        lines += [f"if {test}; then\n", *(own if theirs is None else theirs)]
    for number, tool in enumerate(needed):
        missing = " && ".join(f"! pyrunner_has {name}" for name in tool.split("|"))
        word = "elif" if command or number else "if"
        lines += [f"{word} {missing}; then\n", odd(f"Missing {RUNNER} or {tool.partition('|')[0]}. {what} is disabled.")]
    return [*lines, "else\n", *own, "fi\n"]


def _say(level: str, text: str) -> str:
    return f"pyrunner_say {level} {quote(text)}\n"


def _in_quotes(text: str) -> str:
    """As curl's configuration has it between quotes."""
    return text.replace("\\", "\\\\").replace('"', '\\"')

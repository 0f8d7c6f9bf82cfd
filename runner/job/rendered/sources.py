"""The sources of a job as shell (``job-lifecycle.md`` 11): what :mod:`runner.job.sources` does by argv, in its order.

Everything that the job or the server named is one quoted word. Notices are those of the other executors.
"""

from __future__ import annotations

from collections.abc import Iterable

from runner.identity import user_agent
from runner.job.git_config import USER, Remote, helper_settings, seed_config, template_config
from runner.job.git_safety import LOCKS, STEERING
from runner.job.git_tool import SAFE
from runner.job.rendered.repair import CHECKED_OUT, FETCHED, repaired
from runner.job.script import notice, odd, quote
from runner.job.settings import GitStrategy
from runner.job.sources import CLONES_REVISIONS, SHORT_SHA, SourcesPlan
from runner.job.submodules import ALL_BRANCHES, SubmodulesPlan

# Removes files and whole trees, made writable first where needed; writes a file that nobody else may read.
FILES = """\
pyrunner_remove() {
for pyrunner_path in "$@"; do
if [ -d "$pyrunner_path" ] && [ ! -L "$pyrunner_path" ]; then
rm -rf -- "$pyrunner_path" 2>/dev/null || { chmod -R u+rwX -- "$pyrunner_path"; rm -rf -- "$pyrunner_path"; }
else
rm -f -- "$pyrunner_path"
fi
done
}
pyrunner_own_dir() {
if [ -L "$1" ] || [ ! -d "$1" ]; then pyrunner_remove "$1"; fi
mkdir -p "$1"
}
pyrunner_write() {
pyrunner_remove "$1"
(umask 077; printf '%s' "$2" >"$1")
}
"""
# What an earlier job may have put into a repository, as runner.job.git_safety has it.
_DISARM = """\
pyrunner_disarm() {
for pyrunner_name in %(steering)s; do pyrunner_remove "$1/$pyrunner_name"; done
for pyrunner_name in "$1"/* "$1"/.[!.]* "$1"/*/* "$1"/*/.[!.]*; do
case $pyrunner_name in *.lock) pyrunner_remove "$pyrunner_name" ;; esac
if [ -L "$pyrunner_name" ]; then rm -f -- "$pyrunner_name"; fi
done
if [ -f "$1/packed-refs" ] && grep -q ' refs/replace/' "$1/packed-refs"; then rm -f -- "$1/packed-refs"; fi
for pyrunner_name in "$1"/sharedindex.*; do
if [ -e "$pyrunner_name" ]; then rm -f -- "$1/index" "$pyrunner_name"; fi
done
if [ -f "$1/index" ]; then
case $(head -c 8 "$1/index" | od -An -tx1 | tr -d ' \\n') in 4449524300000002) ;; *) rm -f -- "$1/index" ;; esac
fi
}
"""
# Whether git can go on from a repository; with a second argument its head may lead to no commit yet.
_WHOLE = """\
pyrunner_whole() {
[ -f "$1/HEAD" ] && [ ! -L "$1/HEAD" ] && [ -d "$1/refs" ] && [ -d "$1/objects" ] || return 1
pyrunner_head=$(head -n 1 "$1/HEAD")
case $pyrunner_head in
'ref: '*)
pyrunner_head=${pyrunner_head#ref: }
if [ -n "${2-}" ]; then
case $pyrunner_head in refs/*) return 0 ;; *) return 1 ;; esac
fi
[ -e "$1/$pyrunner_head" ] || cut -d ' ' -f 2- "$1/packed-refs" 2>/dev/null | grep -q -x -F -e "$pyrunner_head"
;;
*[!0-9a-f]*) return 1 ;;
*) [ "${#pyrunner_head}" -eq 40 ] || [ "${#pyrunner_head}" -eq 64 ] ;;
esac
}
"""
# Repositories of submodules below a directory: those that git cannot go on from, links, and what steers git, go.
_MODULES = """\
pyrunner_make_safe() {
for pyrunner_entry in "$1"/* "$1"/.[!.]*; do
if [ -L "$pyrunner_entry" ]; then
rm -f -- "$pyrunner_entry"
elif [ ! -d "$pyrunner_entry" ]; then
:
elif [ -f "$pyrunner_entry/HEAD" ] || [ -f "$pyrunner_entry/config" ] || [ -f "$pyrunner_entry/commondir" ]; then
if pyrunner_whole "$pyrunner_entry"; then
%(disarm)spyrunner_make_safe "$pyrunner_entry/modules"
else
pyrunner_remove "$pyrunner_entry"
fi
else
pyrunner_make_safe "$pyrunner_entry"
fi
done
}
"""
# ``git clone --revision`` needs a newer git.
_CLONES = r"""pyrunner_clones() {
set -- $(git version | sed -n 's/^git version \([0-9]*\)\.\([0-9]*\).*/\1 \2/p')
[ "${1:-0}" -gt %(major)s ] || { [ "${1:-0}" -eq %(major)s ] && [ "${2:-0}" -ge %(minor)s ]; }
}
"""
# Submodules of the index, one a line; names that git would have to quote are not among them.
_LINKS = r"""pyrunner_links() {
pyrunner_git -c core.quotePath=false ls-files --stage | sed -n 's/^160000 [0-9a-f]* [0-3][[:space:]]\([^"]*\)$/\1/p'
}
pyrunner_home() {
[ -f "$1" ] && [ ! -L "$1" ] || return 1
pyrunner_target=$(sed -n '1s/^gitdir: //p' "$1")
[ -n "$pyrunner_target" ] || return 1
pyrunner_target=$(cd "${1%/*}" && cd "$pyrunner_target" 2>/dev/null && pwd -P) || return 1
pyrunner_modules=$(cd .git/modules 2>/dev/null && pwd -P) || return 1
case $pyrunner_target in "$pyrunner_modules"/*) [ -f "$pyrunner_target/HEAD" ] ;; *) return 1 ;; esac
}
pyrunner_check_links() {
pyrunner_links | while IFS= read -r pyrunner_link; do
[ -d "$pyrunner_link" ] || continue
find "./$pyrunner_link" -name .git -prune -print | while IFS= read -r pyrunner_file; do
pyrunner_home "$pyrunner_file" && continue
pyrunner_remove "$pyrunner_file"
pyrunner_file=${pyrunner_file%/.git}
[ -f ".git/modules/${pyrunner_file#./}/HEAD" ] || pyrunner_remove "$pyrunner_file"
done
done
}
"""


def render_sources(plan: SourcesPlan, *, before: str = "", after: str = "") -> str:
    """The work of the stage. ``before`` and ``after`` are the scripts around the git work, if there is any."""
    lines = [FILES]
    if plan.without_tokens:
        lines += [_write(plan.seed, seed_config(plan.external)), _write(plan.external, plan.external_config())]
    match plan.settings.git_strategy:
        case GitStrategy.EMPTY:
            lines.append(notice("Skipping Git repository setup and creating an empty build directory"))
            lines += [f"pyrunner_remove {quote(plan.project_dir)}\n", f"mkdir -p {quote(plan.project_dir)}\n"]
        case GitStrategy.NONE:
            lines.append(notice("Skipping Git repository setup"))
            lines.append(f"pyrunner_own_dir {quote(plan.project_dir)}\n")
        case _:
            lines += ["export GIT_TERMINAL_PROMPT=0 GCM_INTERACTIVE=Never\n", before]
            work = _git_work(plan)
            is_new = plan.settings.git_strategy is GitStrategy.CLONE
            lines += ["(\n", *work, ")\n"] if is_new else repaired(plan, work, _functions(plan))
            lines.append(after)
            return "".join(lines)
    lines += [notice("Skipping Git checkout"), notice("Skipping Git submodules setup")]
    return "".join(lines)


def render_clear(plan: SourcesPlan) -> str:
    """Empty the work tree after a failed attempt."""
    work = [
        notice("Deleting tracked and untracked files..."),
        f"if [ -e {quote(plan.git_dir)} ]; then\n(\ncd {quote(plan.project_dir)}\n",
        *_functions(plan),
        *_renew(plan),
        _git("rm", "-rf", "--ignore-unmatch", "--quiet", "."),
        _git("clean", "-ffdx", "-q"),
        ")\nfi\n",
    ]
    return "".join([FILES, *work])


def render_clean_up(plan: SourcesPlan, secrets: Iterable[str]) -> str:
    """The end of a job: what holds secrets goes, and what the job put in the way of the next one."""
    lines = [FILES, f"pyrunner_remove {_words([*secrets, plan.external, plan.seed])}\n"]
    if plan.uses_git:
        lines += [f"if [ -d {quote(plan.project_dir)} ]; then\n(\ncd {quote(plan.project_dir)}\n", *_clear_locks(plan), ")\nfi\n"]
    lines += _reject_login(plan)
    if not plan.job_cleanup:
        return "".join(lines)
    match plan.settings.git_strategy:
        case GitStrategy.CLONE | GitStrategy.EMPTY:
            lines.append(f"pyrunner_remove {quote(plan.project_dir)}\n")
        case GitStrategy.NONE:
            lines.append(notice("Skipping build directory cleanup step"))
        case _:
            lines += [f"(\ncd {quote(plan.project_dir)}\n", *_functions(plan), *_renew(plan)]
            lines += [_git("clean", *plan.settings.git_clean_flags), _git("reset", "--hard")]
            if plan.submodules.is_wanted:
                lines += ["pyrunner_check_links\n", *_foreach(plan.submodules, "git", "clean", *plan.submodules.clean_flags)]
                lines += _foreach(plan.submodules, "git", "reset", "--hard")
            lines.append(")\n")
    return "".join(lines)


def _reject_login(plan: SourcesPlan) -> list[str]:
    """Let the account's own keepers of logins forget the job's, which git has told them where a script used it (11.7)."""
    if not plan.shares_logins or not plan.uses_git or plan.without_tokens or not plan.remote.host_base:
        return []
    # Not in the project, whose configuration could name keepers of its own.
    text = quote(f"url={plan.remote.host_base}\nusername={USER}\n\n")
    reject = "GIT_TERMINAL_PROMPT=0 GCM_INTERACTIVE=Never git credential reject"
    return [f"(unset GIT_DIR GIT_WORK_TREE; cd / && printf %s {text} | {reject}) >/dev/null 2>&1 || :\n"]


def _git_work(plan: SourcesPlan) -> list[str]:
    """Init, fetch, checkout, submodules: in a shell of its own, with the project as its directory."""
    depth = plan.git.depth
    lines = []
    if plan.settings.git_strategy is GitStrategy.CLONE:
        lines.append(f"pyrunner_remove {quote(plan.project_dir)}\n")
    lines += [f"pyrunner_own_dir {quote(plan.project_dir)}\ncd {quote(plan.project_dir)}\n", *_functions(plan)]
    lines += ["if [ -e .git ] || [ -L .git ]; then\npyrunner_fresh=\n", *_make_safe(plan), "else\npyrunner_fresh=1\nfi\n"]
    lines += [*_template(plan, plan.remote), _write(plan.external, plan.external_config())]
    if plan.correlation_id:
        lines.append(notice(f"Gitaly correlation ID: {plan.correlation_id}"))
    if plan.safe_directory:
        lines.append(_git("config", "--global", "--add", "safe.directory", plan.project_dir))
    fetch = [notice(f"Fetching changes with git depth set to {depth}..." if depth > 0 else "Fetching changes...")]
    fetch += [*_init(plan), *_fetch(plan)]
    if plan.native_clone and plan.settings.git_strategy is GitStrategy.CLONE:
        lines += [
            _CLONES % dict(zip(("major", "minor"), CLONES_REVISIONS, strict=True)),
            "if pyrunner_clones; then\n",
            *_clone(plan),
            "else\n",
            *fetch,
            "fi\n",
        ]
    else:
        lines += fetch
    is_new = plan.settings.git_strategy is GitStrategy.CLONE
    lines += [] if is_new else [FETCHED]
    lines += _checkout(plan) if plan.settings.git_checkout else [notice("Skipping Git checkout")]
    lines += [] if is_new else [CHECKED_OUT]
    lines += _submodules(plan.submodules) if plan.submodules.is_wanted else [notice("Skipping Git submodules setup")]
    return lines


def _template(plan: SourcesPlan, remote: Remote | None) -> list[str]:
    """Git copies all that is in the directory, also what a job has put there."""
    make = f"pyrunner_remove {quote(plan.template)}\nmkdir -p {quote(plan.template)}\n"
    return [make, _write(f"{plan.template}/config", template_config(remote, plan.external))]


def _renew(plan: SourcesPlan) -> list[str]:
    """A repository that is safe, with its configuration anew, for work outside of the stage of the sources."""
    return [*_make_safe(plan), *_template(plan, plan.remote), _init_git(plan, "--quiet")]


def _clone(plan: SourcesPlan) -> list[str]:
    ref, depth = plan.git.ref, plan.git.depth
    what = f"Cloning repository for {ref}" if ref else "Cloning repository"
    options = ["--depth", str(depth)] if depth > 0 else []
    if ref:
        options += ["--revision" if ref.startswith("refs/") else "--branch", ref]
    config = ["-c", f"http.userAgent={user_agent()}", "-c", f"include.path={plan.external}", *_proactive(plan)]
    clone = ["clone", "--no-checkout", plan.remote.clean_url, plan.project_dir, "--template", plan.template]
    commit = quote(f"{plan.git.sha}^{{commit}}")
    return [
        notice(f"{what} with git depth set to {depth}..." if ref and depth > 0 else f"{what}..."),
        *_template(plan, None),
        _git(*config, *clone, *options, *plan.settings.git_clone_extra_flags),
        # The ref may have moved on since: the commit itself is what the job is about.
        f"if ! pyrunner_git rev-parse --quiet --verify {commit} >/dev/null; then\n",
        *_fetch(plan),
        "fi\n",
    ]


def _functions(plan: SourcesPlan) -> list[str]:
    login = helper_settings([*plan.bases, plan.remote.host_base]) if plan.without_tokens else []
    options = [*SAFE, *(part for name, value in login for part in ("-c", f"{name}={value}"))]
    lines = ["unset GIT_DIR GIT_WORK_TREE\n"]
    if not plan.settings.lfs_skip_smudge:
        lines.append("export GIT_LFS_SKIP_SMUDGE=1\n")
    if plan.without_tokens:
        lines.append(f"export CI_JOB_TOKEN={quote(plan.token)}\n")
    lines.append(f'pyrunner_git() {{ git {_words(options)} "$@"; }}\n')
    lines.append(_WHOLE)
    if plan.clean_config:
        lines.append(_DISARM % {"steering": _words(STEERING)})
    if plan.submodules.is_wanted:
        disarm = f'pyrunner_disarm "$pyrunner_entry"\n{_keep_format(plan.submodules)}' if plan.clean_config else ""
        lines += [_LINKS, _MODULES % {"disarm": disarm}]
    return lines


def _keep_format(plan: SubmodulesPlan) -> str:
    """Objects of another format than git's first one are readable only with a word about it."""
    if plan.object_format in ("", "sha1"):
        return ""
    text = f"[core]\n\trepositoryformatversion = 1\n[extensions]\n\tobjectformat = {plan.object_format}\n"
    return f'pyrunner_write "$pyrunner_entry/config" {quote(text)}\n'


def _make_safe(plan: SourcesPlan) -> list[str]:
    """Remove what an earlier job may have put into the repository, and its stale locks."""
    lines = ["if [ -L .git ] || [ ! -d .git ] || ! pyrunner_whole .git unborn; then pyrunner_remove .git; fi\n"]
    if plan.clean_config:
        lines.append("if [ -d .git ]; then pyrunner_disarm .git; fi\n")
    lines += _clear_locks(plan)
    if plan.submodules.is_wanted:
        lines.append("pyrunner_make_safe .git/modules\n")
    return lines


def _clear_locks(plan: SourcesPlan) -> list[str]:
    lines = [
        f"pyrunner_remove {_words(f'.git/{name}' for name in (*LOCKS, 'hooks/post-checkout'))}\n",
        "if [ -d .git/refs ]; then find .git/refs -type f -name '*.lock' -exec rm -f {} +; fi\n",
    ]
    if plan.submodules.is_wanted:
        names = " -o ".join(f"-name {quote(name)}" for name in (*LOCKS, "post-checkout"))
        lines.append(f"if [ -d .git/modules ]; then find .git/modules \\( {names} \\) -prune -exec rm -rf {{}} +; fi\n")
    return lines


def _init_git(plan: SourcesPlan, *options: str) -> str:
    object_format = plan.git.repo_object_format
    extra = ["--object-format", object_format] if object_format not in ("", "sha1") else []
    return _git("init", *options, plan.project_dir, "--template", plan.template, *extra)


def _init(plan: SourcesPlan) -> list[str]:
    lines = [_init_git(plan)]
    fresh = notice("Created fresh repository.")
    if plan.says_fresh and plan.clean_config:
        lines.append(fresh)
    elif plan.clean_config:
        lines.append(f'if [ -n "$pyrunner_fresh" ]; then\n{fresh}fi\n')
    else:
        again = _git("remote", "set-url", "origin", plan.remote.clean_url) + _git("config", "include.path", plan.external)
        lines.append(f'if [ -n "$pyrunner_fresh" ]; then\n{fresh}else\n{again}fi\n')
    return lines


def _fetch(plan: SourcesPlan) -> list[str]:
    depth = plan.git.depth
    fetch = ["-c", f"http.userAgent={user_agent()}", *_proactive(plan), "fetch", "origin", "--no-recurse-submodules"]
    fetch += [*plan.git.refspecs, *(["--depth", str(depth)] if depth > 0 else [])]
    flags = plan.settings.git_fetch_extra_flags
    if depth > 0:
        return [_git(*fetch, *flags)]
    whole, shallow = _git(*fetch, *flags), _git(*fetch, "--unshallow", *flags)
    return [f'if [ -z "$pyrunner_fresh" ] && [ -e .git/shallow ]; then\n{shallow}else\n{whole}fi\n']


def _checkout(plan: SourcesPlan) -> list[str]:
    sha, settings = plan.git.sha, plan.settings
    lines = [notice(f"Checking out {sha[:SHORT_SHA]} as detached HEAD (ref is {plan.git.ref})...")]
    lines.append(_git("-c", "submodule.recurse=false", *_proactive(plan), "checkout", "-f", "-q", sha))
    if settings.git_clean_flags:
        lines.append(f'if [ -z "$pyrunner_fresh" ]; then\n{_git("clean", *settings.git_clean_flags)}fi\n')
    if not settings.lfs_skip_smudge:
        wanted = _git("ls-files", "--", ":(glob)**/.gitattributes").rstrip()
        lines.append(f'if [ -n "$({wanted})" ] && git lfs version >/dev/null 2>&1; then\n{_git("lfs", "pull")}fi\n')
    return lines


def _submodules(plan: SubmodulesPlan) -> list[str]:
    """From a checked-out project to checked-out submodules."""
    recursively = " recursively" if plan.is_recursive else ""
    depth = f" with git depth set to {plan.depth}" if plan.depth > 0 else ""
    again = [odd("Updating submodules failed. Retrying...")]
    if "--remote" in plan.update_flags:
        again += _foreach(plan, "git", "fetch", "origin", ALL_BRANCHES)
    again += [_sync(plan), _update(plan), *_foreach(plan, "git", "reset", "--hard")]
    lines = [
        notice(f"Updating/initializing submodules{recursively}{depth}..."),
        "pyrunner_check_links\n",
        _git("submodule", "init"),
        _sync(plan),
        *_foreach(plan, "git", "clean", *plan.clean_flags),
        *_foreach(plan, "git", "reset", "--hard"),
        f"if {_update(plan).rstrip()}; then\n{notice('Updated submodules')}{_sync(plan)}else\n{''.join(again)}fi\n",
        *_foreach(plan, "git", "clean", *plan.clean_flags),
        notice("Configuring submodules to use parent git credentials..."),
        _git("submodule", "foreach", "--recursive", "git", "config", "include.path", plan.external),
    ]
    if not plan.skips_lfs:
        pull = notice("Pulling LFS files...") + "".join(_foreach(plan, "git", "lfs", "pull"))
        find = 'pyrunner_links | while IFS= read -r pyrunner_link; do find "./$pyrunner_link" -name .gitattributes; done'
        lines.append(f'if [ -n "$({find})" ] && git lfs version >/dev/null 2>&1; then\n{pull}fi\n')
    return lines


def _update(plan: SubmodulesPlan) -> str:
    recursive = ["--recursive"] if plan.is_recursive else []
    depth = ["--depth", str(plan.depth)] if plan.depth > 0 else []
    update = ["submodule", "update", "--init", *recursive, *depth, *plan.update_flags, *_paths(plan)]
    return _git("-c", f"include.path={plan.external}", *update)


def _sync(plan: SubmodulesPlan) -> str:
    return _git("submodule", "sync", *(["--recursive"] if plan.is_recursive else []), *_paths(plan))


def _foreach(plan: SubmodulesPlan, *command: str) -> list[str]:
    return [_git("submodule", "foreach", *(["--recursive"] if plan.is_recursive else []), *command)]


def _paths(plan: SubmodulesPlan) -> list[str]:
    return ["--", *plan.paths] if plan.paths else []


def _proactive(plan: SourcesPlan) -> list[str]:
    base = plan.remote.host_base
    return ["-c", f"http.{base}.proactiveAuth=basic"] if plan.proactive_auth and base else []


def _git(*arguments: str) -> str:
    return f"pyrunner_git {_words(arguments)}\n"


def _words(words: Iterable[str]) -> str:
    return " ".join(quote(word) for word in words)


def _write(path: str, content: bytes) -> str:
    return f"pyrunner_write {quote(path)} {quote(content.decode(errors='surrogateescape'))}\n"

"""What :mod:`runner.job.git_damage` does, as shell: a repository that git fails at for its own state is made anew, once."""

from __future__ import annotations

from collections.abc import Iterable

from runner.job.git_damage import USAGE, asks_by_id, named_refs, probe
from runner.job.script import odd, quote
from runner.job.sources import DAMAGED, MODULE_DAMAGED, SourcesPlan
from runner.job.submodules import FSCK

# How far the work got, for whoever looks at what went wrong: a file, since the work is done in a shell of its own.
FETCHED = 'printf fetched >"$pyrunner_progress"\n'
CHECKED_OUT = 'printf checked-out >"$pyrunner_progress"\n'

_REPAIR = """\
pyrunner_repair() {
cd %(project)s || return 1
%(functions)spyrunner_reached=$(cat "$pyrunner_progress" 2>/dev/null)
if [ "$pyrunner_reached" = checked-out ]; then
pyrunner_bad=$(find .git/modules -type f -name HEAD 2>/dev/null | while IFS= read -r pyrunner_file; do
pyrunner_entry=${pyrunner_file%%/HEAD}
[ -d "$pyrunner_entry/objects" ] || continue
pyrunner_git --git-dir="$pyrunner_entry" %(fsck)s >/dev/null 2>&1 || printf '%%s\\n' "$pyrunner_entry"
done)
[ -n "$pyrunner_bad" ] || return 1
printf '%%s\\n' "$pyrunner_bad" | while IFS= read -r pyrunner_entry; do pyrunner_remove "$pyrunner_entry"; done
%(module_damaged)sreturn 0
fi
if ! pyrunner_git rev-parse --git-dir >/dev/null 2>&1; then
:
elif [ "$pyrunner_reached" = fetched ]; then
pyrunner_git cat-file -e %(commit)s 2>/dev/null || [ -e %(object)s ] || return 1
else
[ "$pyrunner_status" -ne %(usage)d ] || return 1
pyrunner_there=$(pyrunner_git ls-remote origin %(patterns)s 2>/dev/null | cut -f 2)
[ -n "$pyrunner_there" ] || return 1
%(probe)sfor pyrunner_name in %(names)s; do
printf '%%s\\n' "$pyrunner_there" | grep -q -x -F -e "$pyrunner_name" || return 1
done
fi
cd /
%(damaged)spyrunner_remove %(project)s
}
"""
# Not in a condition: there a shell would go on behind what fails.
_TWICE = """\
pyrunner_remove "$pyrunner_progress"
pyrunner_old=
if [ -e %(git_dir)s ]; then pyrunner_old=1; fi
set +e
(set -e; pyrunner_sources)
pyrunner_status=$?
if [ "$pyrunner_status" -ne 0 ] && [ -n "$pyrunner_old" ] && (pyrunner_repair); then
(set -e; pyrunner_sources)
pyrunner_status=$?
fi
set -e
pyrunner_remove "$pyrunner_progress"
if [ "$pyrunner_status" -ne 0 ]; then exit "$pyrunner_status"; fi
"""


def repaired(plan: SourcesPlan, work: Iterable[str], functions: Iterable[str]) -> list[str]:
    """``work``, and once more where the repository turns out to be damaged. ``functions`` are those that it needs."""
    sha, by_id = plan.git.sha, asks_by_id(plan.git)
    names = [] if by_id else named_refs(plan.git)
    repair = _REPAIR % {
        "project": quote(plan.project_dir),
        "functions": "".join(functions),
        "fsck": " ".join(FSCK),
        "module_damaged": odd(MODULE_DAMAGED),
        "damaged": odd(DAMAGED),
        "commit": quote(f"{sha}^{{commit}}"),
        "object": quote(f".git/objects/{sha[:2]}/{sha[2:]}"),
        "usage": USAGE,
        "probe": f"! pyrunner_git {' '.join(probe(plan.git))} >/dev/null 2>&1 || return 1\n" if by_id else "",
        "patterns": " ".join(map(quote, names or ["HEAD"])),
        "names": " ".join(map(quote, names)) or "$pyrunner_empty",
    }
    progress = f"pyrunner_progress={quote(f'{plan.tmp_dir}/.pyrunner-progress')} pyrunner_empty=\n"
    return [progress, "pyrunner_sources() {\n", *work, "}\n", repair, _TWICE % {"git_dir": quote(plan.git_dir)}]

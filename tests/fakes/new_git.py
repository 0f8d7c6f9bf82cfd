"""A git that can clone a revision where the host's own cannot: it knows the options of ``clone`` and takes its steps."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

CLONES_REVISIONS = (2, 49)
PROGRAM = r"""
import os, subprocess, sys
REAL, LOG = {real!r}, {log!r}
arguments = sys.argv[1:]
place = 0
while arguments[place : place + 1] == ["-c"]:
    place += 2
head, command, rest = arguments[:place], arguments[place : place + 1], arguments[place + 1 :]
if command == ["version"]:
    print("git version 2.50.1")
    sys.exit()
if command != ["clone"]:
    os.execv(REAL, [REAL, *arguments])
with open(LOG, "a") as log:
    print(*rest, file=log)
valued = {{"--template": "", "--depth": "", "--revision": "", "--branch": ""}}
flags, places = [], []
words = iter(rest)
for word in words:
    if word in valued:
        valued[word] = next(words)
    elif word in ("--no-checkout", "--no-tags", "--quiet"):
        flags.append(word)
    elif word.startswith("-"):
        sys.exit(f"error: unknown option `{{word}}'")
    else:
        places.append(word)
url, directory = places
if valued["--revision"] and valued["--branch"]:
    sys.exit("fatal: options '--revision' and '--branch' cannot be used together")
if not valued["--revision"]:
    os.execv(REAL, [REAL, *arguments])
def git(*words):
    done = subprocess.run([REAL, *head, "-C", directory, *words])
    if done.returncode:
        sys.exit(128)
print(f"Cloning into '{{directory}}'...", file=sys.stderr)
subprocess.run([REAL, *head, "init", "--quiet", "--template", valued["--template"], directory], check=True)
git("config", "remote.origin.url", url)
git("fetch", "--quiet", *(["--depth", valued["--depth"]] if valued["--depth"] else []), "origin", valued["--revision"])
git("update-ref", "--no-deref", "HEAD", "FETCH_HEAD")
"""


def put_first(home: Path, log: Path) -> None:
    """Let jobs with this home find such a git before the host's own, which is enough where it is new enough.

    ``PYRUNNER_NEW_GIT`` names a real one to be used instead. ``log`` gets the arguments of each clone of the stand-in.
    """
    real = shutil.which("git") or ""
    version = subprocess.run([real, "version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"(\d+)\.(\d+)", version)
    directory = home / "new-git"
    directory.mkdir()
    given = os.environ.get("PYRUNNER_NEW_GIT")
    if given or (found and (int(found[1]), int(found[2])) >= CLONES_REVISIONS):
        (directory / "git").symlink_to(given or real)
    else:
        script = directory / "git"
        script.write_text(f"#!{sys.executable} -I\n" + PROGRAM.format(real=real, log=str(log)))
        script.chmod(0o755)
    (home / ".bash_profile").write_text(f'PATH="{directory}:$PATH"\n')

"""Ways to a job's directories: links that a job may have planted are not followed, those of the host's owner are."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from executors.file_operations import Roots, clear_path, exists, make_dir

NOBODY = 65534


@pytest.fixture
def builds() -> Iterator[Path]:
    """A builds directory with a project behind a link: ``lab`` leads to ``elsewhere``. Every account gets there."""
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        root.chmod(0o755)
        (root / "elsewhere" / "app").mkdir(parents=True)
        (root / "builds").mkdir()
        (root / "builds" / "lab").symlink_to(root / "elsewhere")
        yield root / "builds"


def roots_of(builds: Path) -> Roots:
    return Roots([str(builds / "lab" / "app")], str(builds))


def test_a_link_that_a_job_may_have_made_is_taken_away(builds: Path) -> None:
    roots = roots_of(builds)
    project = str(builds / "lab" / "app")
    assert not exists(roots, project)
    assert clear_path(roots, project) == [str(builds / "lab")]
    make_dir(roots, project)
    assert not (builds / "lab").is_symlink()
    assert (builds.parent / "elsewhere" / "app").is_dir()


@pytest.mark.parametrize(("mode", "is_followed"), [(0o755, True), (0o777, False)])
def test_a_link_that_only_the_owner_of_the_host_can_make_stays(mode: int, is_followed: bool, builds: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can change to another account")
    builds.chmod(mode)
    roots, project = roots_of(builds), str(builds / "lab" / "app")
    pid = os.fork()
    if pid == 0:
        try:
            os.setresuid(NOBODY, NOBODY, NOBODY)
            os._exit(10 + exists(roots, project))
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 10 + is_followed

"""Directories of jobs."""

from __future__ import annotations

import pytest

from runner.job.directories import slug


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://h/group/app.git", "group/app"),
        ("https://h/group/app.git/", "group/app.git"),
        ("https://h/a/../b.git", "b"),
        ("https://h//a//./b.git?x=1", "a/b"),
        ("https://h/../../a", "a"),
        ("https://h/a%2Fb%20c", "a/b c"),
        ("https://h", ""),
        ("https://h/a..b", "project-9"),
        ("https://h/a%2e%2eb", "project-9"),
        ("git@h:a/b.git", "project-9"),
        ("file:///a/b", "project-9"),
        ("https://[h/a", "project-9"),
        ("https://h/a%zz", "project-9"),
        ("https://h/a%", "project-9"),
        ("https://h/a\nb", "project-9"),
        ("https://h/a%00b", "project-9"),
        ("https://h/%ff", "\udcff"),
    ],
)
def test_a_url_names_the_directory_of_its_project(url: str, expected: str) -> None:
    assert slug(url, 9) == expected

"""Names, formats and statements of artifacts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from executors.workspace import Entry
from runner.archive.artifacts import file_name, format_of
from runner.archive.formats import compression_level, sniff
from runner.archive.metadata import Provenance, statement
from runner.errors import ArchiveError
from runner.job.env_file import parse_env_file


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("artifacts", "zip", "artifacts.zip"),
        ("a/b", "", "b.zip"),
        ("a/b/", "zip", "b.zip"),
        ("/", "zip", ".zip"),
        ("..", "zip", "...zip"),
        (".", "gzip", "default.gz"),
        ("", "raw", "default"),
        ("junit.xml", "gzip", "junit.xml.gz"),
        ("gl-sast-report.json", "raw", "gl-sast-report.json"),
        ("n", "tarzstd", "n.tar.zst"),
        ("n", "zipzstd", "n.zip"),
    ],
)
def test_file_names(name: str, kind: str, expected: str) -> None:
    assert file_name(name, kind) == expected


def test_an_unknown_format_is_named() -> None:
    with pytest.raises(ArchiveError, match='"rar" format: unsupported archive format'):
        file_name("n", "rar")


def an_entry(path: str, kind: str = "file") -> Entry:
    return Entry(path=path, kind=kind, mode=0o644, size=1, mtime_ns=0)


@pytest.mark.parametrize(
    ("kind", "members", "why"),
    [
        ("raw", [an_entry("a"), an_entry("b")], "only one file can be sent as raw"),
        ("raw", [an_entry("d", "dir")], "only one file can be sent as raw"),
        ("gzip", [an_entry("a"), an_entry("d", "dir")], 'the "d" is not a regular file'),
        ("gzip", [an_entry("l", "link")], 'the "l" is not a regular file'),
    ],
)
def test_what_a_format_cannot_hold_is_said(kind: str, members: list[Entry], why: str) -> None:
    with pytest.raises(ArchiveError, match=why):
        format_of(kind, members)


def test_an_invalid_level_falls_back() -> None:
    assert compression_level("") == compression_level("default")
    level, complaint = compression_level("bogus")
    assert level == compression_level("")[0]
    assert complaint == 'compression level "bogus" is invalid, falling back to default'


@pytest.mark.parametrize(("head", "name"), [(b"\x28\xb5\x2f\xfd", "tarzstd"), (b"PK\3\4", "zip"), (b"", "zip")])
def test_archives_are_known_by_their_first_bytes(head: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(head)
    assert sniff(tmp_path / "a").value == name


def test_the_statement_names_files_job_and_runner() -> None:
    facts = Provenance(
        project_url="https://gitlab.example/group/project",
        sha="abc",
        runner_id="5",
        runner_name="lab",
        executor="shell",
        job_id=7,
        job_name="build",
        variables=["B", "A"],
        started_s=0.0,
        ended_s=61.9,
    )
    found = json.loads(statement([("a", "00")], facts))
    assert found["subject"] == [{"name": "a", "digest": {"sha256": "00"}}]
    definition, details = found["predicate"]["buildDefinition"], found["predicate"]["runDetails"]
    assert definition["externalParameters"] == {
        "A": "",
        "B": "",
        "entryPoint": "build",
        "source": "https://gitlab.example/group/project",
    }
    assert definition["internalParameters"] | {"architecture": ""} == {
        "architecture": "",
        "executor": "shell",
        "job": "7",
        "name": "lab",
    }
    assert definition["resolvedDependencies"][0]["digest"] == {"sha256": "abc"}
    assert details["builder"]["id"] == "https://gitlab.example/group/project/-/runners/5"
    assert details["metadata"] == {
        "invocationId": "7",
        "startedOn": "1970-01-01T00:00:00Z",
        "finishedOn": "1970-01-01T00:01:01Z",
    }


def test_the_env_file_is_read_as_scripts_read_it() -> None:
    content = b"A=1\n B=x y \n\nno-equals\n1X=2\nC=a=b\nA=3\nLAST=unfinished"
    assert parse_env_file(content) == {"A": "3", "B": "x y", "C": "a=b"}

"""What is kept on an engine: what the runner knows of it, what jobs use of it, and what it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from executors.docker.journal import FILE, Journal
from executors.docker.kept_images import layers, named_by_others, shares
from executors.docker.ledger import Ledger
from executors.docker.uses import used_by


def test_a_ledger_knows_what_was_used_when_and_what_is_on_its_way_out(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "volumes")
    assert ledger.last_uses() == {}
    ledger.use_known("a")
    assert ledger.last_uses() == {}, "nothing is known of it"
    ledger.use("a")
    ledger.add("b", "app:1")
    ledger.add("b", "app:2")
    assert set(ledger.last_uses()) == {"a", "b"}
    for name in ("a", "b", "never used"):
        ledger.mark(name)
        assert ledger.is_going(name)
    again = Ledger(tmp_path / "volumes")
    assert again.last_uses() == {}
    assert sorted(again.going()) == ["a", "b", "never used"]
    assert again.given("b") == {"app:1", "app:2"}
    again.put_back("b")
    again.forget("a")
    assert set(again.last_uses()) == {"b"}
    assert again.given("b") == {"app:1", "app:2"}
    assert again.going() == ["never used"]


def test_what_somebody_removed_is_forgotten_unless_it_is_younger_than_the_list(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.use("gone")
    ledger.use("there")
    ledger.forget_others(["there"], before_ns=0)
    assert set(ledger.last_uses()) == {"gone", "there"}
    ledger.forget_others(["there"], before_ns=2**63)
    assert set(ledger.last_uses()) == {"there"}


def test_records_tell_what_jobs_use(tmp_path: Path) -> None:
    for name in ("1", "2", "torn", "none"):
        (tmp_path / name).mkdir()
    journal = Journal(tmp_path / "1")
    journal.note("uses", names=["volume"])
    journal.note("uses", names=["volume", "sha256:image"])
    ended = Journal(tmp_path / "2")
    ended.note("uses", names=["other"])
    ended.note("uses", names=[])
    Journal(tmp_path / "torn").note("uses", names=["last"])
    with (tmp_path / "torn" / FILE).open("ab") as file:
        file.write(b'{"fact": "us')
    directories = [tmp_path / name for name in ("1", "2", "torn", "none", "gone")]
    assert used_by(directories) == {"volume", "sha256:image", "last"}


@pytest.mark.parametrize(
    ("image", "given", "others"),
    [
        ({"RepoTags": ["app:1"], "RepoDigests": ["app@sha256:aa"]}, ["app:1"], False),
        ({"RepoTags": ["app:1", "mine:1"]}, ["app:1"], True),
        ({"RepoTags": None, "RepoDigests": ["app@sha256:aa"]}, ["app:1"], False),
        ({"RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]}, ["app:1"], False),
        ({"RepoTags": ["h:5000/app:1"], "RepoDigests": ["h:5000/app@sha256:aa"]}, ["h:5000/app:1"], False),
        ({"RepoTags": ["app:1"], "RepoDigests": ["app@sha256:aa", "mine@sha256:aa"]}, ["app:1"], True),
        ({"RepoTags": [], "RepoDigests": ["h:5000/app@sha256:aa"]}, ["h:5000/app@sha256:aa"], False),
        ({"RepoTags": ["app:1"]}, [], True),
    ],
)
def test_names_that_others_gave_an_image(image: dict[str, Any], given: list[str], others: bool) -> None:
    assert named_by_others(image, given) is others


def test_a_layer_counts_once() -> None:
    images = {
        "a": layers("a", ["base", "a1"], [100, 10]),
        "b": layers("b", ["base", "b1"], [100, 30]),
        "alone": layers("alone", ["x"], [7]),
    }
    assert shares(images) == {"a": 60, "b": 80, "alone": 7}


def test_layers_are_told_apart_where_the_engine_hides_the_empty_ones() -> None:
    images = {
        "a": layers("a", ["base", "empty", "a1"], [100, 10]),
        "b": layers("b", ["base", "empty", "b1"], [100, 30]),
    }
    assert shares(images) == {"a": 60, "b": 80}

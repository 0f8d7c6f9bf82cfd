"""What things of a job are called on an engine."""

from __future__ import annotations

import pytest

from executors.docker.names import Names, host_label, network_name, store_name, unique_name


def names(**settings: str) -> Names:
    defaults = {"unique": "runner-abc-project-9-concurrent-0", "attempt": "0123456789abcdef", "store": "f" * 32, "network": "n"}
    return Names(**{**defaults, **settings})


def test_containers_are_named_for_slot_and_attempt() -> None:
    found = names()
    assert found.build == "runner-abc-project-9-concurrent-0-0123456789abcdef-build"
    assert found.helper == "runner-abc-project-9-concurrent-0-0123456789abcdef-predefined"
    assert found.service("reg.test/ns/svc", 2) == "runner-abc-project-9-concurrent-0-0123456789abcdef-reg.test__ns__svc-2"


def test_kept_volume_is_named_as_recorded() -> None:
    found = names(store=store_name("glrt-lab", "s_1746f8786189", 9, 0)).kept_volume("/cache", protected=True)
    assert found == "runner-69d5f283dd926b05ff63c5fe085e884e-cache-3c3f060a0374fc8bc39395164f415a70-protected"


def test_volume_of_a_job_is_named_for_the_attempt() -> None:
    found = names().job_volume("/builds", protected=False)
    assert found == "runner-abc-project-9-concurrent-0-0123456789abcdef-cache-c33bcaa1fd2c77edfc3893b41966cea8"


def test_other_slots_and_projects_have_other_stores() -> None:
    found = {store_name("t", "s", project, slot) for project in (1, 2) for slot in (0, 1)}
    assert len(found) == 4


def test_slot_and_network_have_names_for_people() -> None:
    assert unique_name("lab", 9, 0) == "runner-lab-project-9-concurrent-0"
    assert network_name("lab", 9, 0, 1001) == "runner-lab-9-0-1001"


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("Runner-ABC", "runner-abc"),
        ("runner-a_b.c", "runner-abc"),
        ("--x", "x"),
        ("x" * 70, "x" * 63),
    ],
)
def test_labels_keep_what_a_host_name_may_have(text: str, label: str) -> None:
    assert host_label(text) == label

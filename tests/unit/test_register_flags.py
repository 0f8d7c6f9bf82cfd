"""Flags of maps: pairs, switches and lists."""

from __future__ import annotations

from typing import Any

import click
import pytest

from runner.cli.flags import Lists, Pairs, Switches


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        (Pairs(), "nofile:1024:2048", {"nofile": "1024:2048"}),
        (Pairs(), "/t:", {"/t": ""}),
        (Pairs(), '{"net.x": "1", "net.y": "2"}', {"net.x": "1", "net.y": "2"}),
        (Switches(), "FF_A:false", {"FF_A": False}),
        (Switches(), '{"FF_A": true}', {"FF_A": True}),
        (Lists(), "alpine:/dev/a, /dev/b", {"alpine": ["/dev/a", "/dev/b"]}),
        (Lists(), '{"alpine:*": ["/dev/a:/dev/b"]}', {"alpine:*": ["/dev/a:/dev/b"]}),
    ],
)
def test_what_a_map_flag_takes(kind: Pairs, text: str, found: dict[str, Any]) -> None:
    assert kind.convert(text, None, None) == found


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (Pairs(), "nofile"),
        (Pairs(), ":x"),
        (Pairs(), '{"a": 1}'),
        (Switches(), "FF_A:1"),
        (Switches(), '{"FF_A": "yes"}'),
        (Switches(), '{"FF_A": []}'),
        (Lists(), '{"a": [1]}'),
    ],
)
def test_what_it_refuses(kind: Pairs, text: str) -> None:
    with pytest.raises(click.BadParameter, match=r"or a JSON object of such"):
        kind.convert(text, None, None)

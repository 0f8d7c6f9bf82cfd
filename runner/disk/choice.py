"""Which things go: those that were not used for the longest time, and none that anybody uses. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from executors.disk import Item

# Trimming goes on to here, so that it is not due again after the next job.
LOW_WATER = 0.9


def over_budget(items: Sequence[Item], budget_bytes: int, is_held: Callable[[Item], bool]) -> list[Item]:
    """What has to go so that the rest fits the budget; what is held stays, and counts."""
    excess = sum(item.size_bytes for item in items) - budget_bytes
    if excess <= 0:
        return []
    return [item for _, item in _oldest([("", item) for item in items], excess + int(budget_bytes * (1 - LOW_WATER)), is_held)]


def for_room(
    kinds: Mapping[str, Sequence[Item]], needed: Mapping[int, int], is_held: Callable[[Item], bool]
) -> dict[str, list[Item]]:
    """What has to go of which kind so that file systems (``st_dev``) get back the bytes that they need; everything that
    may go, if that is not enough. What lies nobody knows where may help any of them.
    """
    listed = [(kind, item) for kind, items in kinds.items() for item in items]
    chosen: dict[str, list[Item]] = {}
    for device, missing in needed.items():
        there = [(kind, item) for kind, item in listed if item.device in (device, 0) and item not in chosen.get(kind, ())]
        for kind, item in _oldest(there, missing, is_held):
            chosen.setdefault(kind, []).append(item)
    return chosen


def _oldest(items: Sequence[tuple[str, Item]], missing: int, is_held: Callable[[Item], bool]) -> list[tuple[str, Item]]:
    chosen = []
    for kind, item in sorted(items, key=lambda one: one[1].last_used_ns):
        if missing <= 0:
            break
        if not item.in_use and not is_held(item):
            chosen.append((kind, item))
            missing -= item.size_bytes
    return chosen

"""What a runner says of itself, as the reference does: GitLab withholds jobs that need what is not listed."""

from __future__ import annotations

import pytest

from executors.registry import KINDS
from runner.coordinator.info import runner_info
from tests.contract import golden
from tests.contract.differences import FEATURES_NOT_OFFERED

pytestmark = pytest.mark.skipif(not golden.ROOT.is_dir(), reason=golden.ABSENT)
RECORDED = {"shell": ("wire", "full-job"), "custom": ("files", "custom-stages")}


@pytest.mark.parametrize("executor", RECORDED)
def test_features_are_those_of_the_reference(executor: str) -> None:
    recorded = golden.read(*RECORDED[executor])["requests"][0]["body"]["info"]
    expected = {name: on and name not in FEATURES_NOT_OFFERED for name, on in recorded["features"].items()}
    ours = runner_info(KINDS[executor])
    assert ours["features"] == expected
    assert (ours["executor"], ours["shell"]) == (recorded["executor"], recorded["shell"])


def test_what_is_not_offered_is_offered_by_the_reference() -> None:
    offered = set()
    for area, name in RECORDED.values():
        features = golden.read(area, name)["requests"][0]["body"]["info"]["features"]
        offered |= {feature for feature, on in features.items() if on}
    assert set(FEATURES_NOT_OFFERED) <= offered

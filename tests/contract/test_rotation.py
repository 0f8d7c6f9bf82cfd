"""Renewing tokens where no recording helps."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon
from tests.waiting import until

RESET = "/api/v4/runners/reset_authentication_token"


def times(obtained_s: float, expires_s: float) -> str:
    now = datetime.now(UTC).replace(microsecond=0)
    obtained, expires = (now + timedelta(seconds=seconds) for seconds in (obtained_s, expires_s))
    return f"  token_obtained_at = {obtained:%Y-%m-%dT%H:%M:%SZ}\n  token_expires_at = {expires:%Y-%m-%dT%H:%M:%SZ}\n"


def resets(fake: FakeCoordinator) -> list[str]:
    return [request.body["token"] for request in fake.requests if request.path == RESET]


async def test_a_token_file_gets_the_new_token(fake: FakeCoordinator, make_daemon: Callable[..., Daemon], tmp_path: Path) -> None:
    secret = tmp_path / "token"
    secret.write_text("glrt-filed-token\n")
    secret.chmod(0o600)
    daemon = make_daemon(extra=times(-100, 10))
    text = daemon.config.read_text().replace('  token = "glrt-lab"\n', "")
    daemon.config.write_text(text + f'  [runners.pyrunner]\n    token_file = "{secret}"\n')
    daemon.start()
    await until(lambda: secret.read_text() == "glrt-new-token-0001\n")
    assert secret.stat().st_mode & 0o777 == 0o600
    assert "glrt-" not in daemon.config.read_text()
    await fake.until(lambda: any(request.body["token"] == "glrt-new-token-0001" for request in fake.requests))


async def test_nothing_is_reset_that_could_not_be_saved(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    """The file vanished together with its directory."""
    daemon = make_daemon(extra=times(-8, 12))
    daemon.start()
    await fake.until(lambda: fake.requests)
    moved = daemon.config.parent.rename(daemon.root / "away")
    daemon.config.parent.symlink_to("/proc/nowhere")
    await until(lambda: "it could not be saved" in daemon.log)
    assert resets(fake) == []
    daemon.config.parent.unlink()
    moved.rename(daemon.config.parent)


async def test_an_edit_meanwhile_is_kept(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(extra=times(-6, 3), before="# mine\n")
    fake.faults.add(f"POST {RESET}", "delay", seconds=1.5)
    daemon.start()
    began = time.monotonic()
    await until(lambda: resets(fake))
    daemon.config.write_text(daemon.config.read_text().replace("concurrent = 4", "concurrent = 7 # edited"))
    await until(lambda: "glrt-new-token-0001" in daemon.config.read_text())
    assert time.monotonic() - began < 20
    assert "concurrent = 7 # edited" in daemon.config.read_text()
    assert daemon.config.read_text().startswith("# mine\n")
    await until(lambda: "max_builds=7" in daemon.log)


async def test_a_secret_token_is_never_logged(fake: FakeCoordinator, make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(extra=times(-100, 10), before='log_level = "debug"\n')
    daemon.start()
    await until(lambda: "glrt-new-token-0001" in daemon.config.read_text())
    await fake.until(lambda: len(fake.requests) > 3)
    assert "glrt-new-token-0001" not in daemon.log
    assert "glrt-lab" not in daemon.log

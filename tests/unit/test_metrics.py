"""What ``/metrics`` says of runners that come and go."""

from __future__ import annotations

from runner.config.model import RunnerConfig
from runner.job.costs import Costs
from runner.ops.metrics import JobQueue, Metrics, Snapshot


def test_nothing_stays_of_a_runner_that_left() -> None:
    gone, other = (RunnerConfig(name=name, url="http://x", token=f"glrt-{name * 9}", executor="shell") for name in "ab")
    nothing = Snapshot(concurrent=1, state="running", runners=(), jobs=(), requests={})
    metrics = Metrics("s_1", lambda: nothing)
    metrics.know((gone, other))
    for runner in (gone, other):
        metrics.job_began(runner, JobQueue(waited_s=1.0, project_jobs="0", size=1, depth=1))
        metrics.stage_ended(runner, "step_script", 1.0)
        metrics.job_ended(runner, "script_failure", 1.0)
        metrics.job_cost(runner, Costs(duration_s=1.0, stages=(), cpu_user_s=1.0, max_rss_bytes=1, up_bytes=1, cache_hits=1))
        metrics.requested("request_job", "POST", 204, 0.1, runner.short_token)
    before = metrics.page().decode()
    assert before.count("aaaaaaaaa") == before.count("bbbbbbbbb") > 0
    metrics.forget(gone)
    after = metrics.page().decode()
    assert "aaaaaaaaa" not in after
    assert after.count("bbbbbbbbb") == before.count("bbbbbbbbb")

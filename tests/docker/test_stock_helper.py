"""A configured helper image that is laid out as the stock one: busybox, git, an init and an entrypoint that prepares."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import docker
import pytest

from tests.docker import images
from tests.docker.images import GIT_CORE, Root
from tests.docker.test_jobs import containers_of, ended
from tests.fakes import git_server
from tests.fakes.coordinator import FakeCoordinator
from tests.fakes.daemon import Daemon
from tests.fakes.job import job_payload

INIT = '#!/bin/sh\nexec "$@"\n'
# As the stock one: it says what it does before it becomes what was asked for.
ENTRYPOINT = """#!/bin/sh
echo "Updating CA certificates..."
echo "WARNING: ca-certificates.crt does not contain exactly one certificate" >&2
mkdir -p /home/gitlab-runner
exec "$@"
"""


def stock() -> Root:
    root = images.busybox()
    git = shutil.which("git")
    assert git is not None
    root.program(Path(git))
    core = Path(subprocess.run(["git", "--exec-path"], capture_output=True, text=True, check=True).stdout.strip())
    for name in GIT_CORE:
        root.program(core / name)
    for name in ("lib", "lib64"):
        root.link(name, f"usr/{name}")
    for library in Path("/lib").glob("*-linux-gnu/libnss_*.so.2"):
        root.file(f"usr{library}", library.resolve())
    root.directory("usr/share/git-core/templates")
    root.text("usr/bin/dumb-init", INIT, 0o755)
    root.text("entrypoint", ENTRYPOINT, 0o755)
    root.text("usr/bin/gitlab-runner-helper", "#!/bin/sh\necho the helper of another runner >&2\nexit 1\n", 0o755)
    return root


@pytest.mark.timeout(300)
async def test_sources_caches_and_artifacts_go_through_it(
    fake: FakeCoordinator, make_daemon: Callable[..., Daemon], client: docker.APIClient
) -> None:
    settings = ['ENTRYPOINT ["/usr/bin/dumb-init", "/entrypoint"]', 'CMD ["sh"]', "USER 0:0"]
    tag = images.make(client, "gitlab-runner-helper:x86_64-local", stock(), settings)
    sha = git_server.make_repository(fake.repositories, "app", {"README": "hi\n", "dir/a": "a\n"})
    daemon = make_daemon(docker=f'    helper_image = "{tag}"')
    daemon.start()
    logs = []
    for number in (1, 2):
        script = ["cat README dir/a; ls c || { mkdir -p c/empty; head -c 300000 /dev/urandom >c/big; }; ln -sf README link"]
        script += ["md5sum c/big; mkdir -p out; cp c/big out/"]
        payload = job_payload(
            number,
            script,
            variables={"GIT_STRATEGY": "fetch"},
            cache=[{"key": "k", "paths": ["c/", "link"], "policy": "pull-push", "when": "on_success"}],
            artifacts=[{"paths": ["out"], "when": "on_success", "artifact_type": "archive", "artifact_format": "zip"}],
        )
        payload["git_info"] |= fake.git_info(sha)
        job = await ended(fake.add_job(payload))
        assert job.state == "success", job.log + daemon.log
        assert f"Using helper image:  {tag}  (overridden, default would be  pyrunner-helper )" in job.log
        assert "\nhi\na\n" in job.log
        assert "another runner" not in job.log
        assert "Updating CA" not in job.log
        assert [artifact.kind for artifact in job.artifacts] == ["archive"]
        logs.append(job.log)
    sums = [next(line for line in log.splitlines() if line.endswith("  c/big")) for log in logs]
    assert sums[0] == sums[1]
    await daemon.stop()
    assert containers_of(client, daemon) == []

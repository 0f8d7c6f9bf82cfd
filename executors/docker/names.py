"""What everything that a job makes on an engine is called (``docker-executor.md`` 2.1)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

LABELS = "com.gitlab.gitlab-runner."
_LABEL_MAX = 63


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """The names of one attempt to prepare one job.

    ``unique`` is the same for every job of this runner, project and slot; ``attempt`` are 16 hexadecimal digits, chosen
    once for each attempt; ``store`` are the 32 that reusable volumes share (:func:`store_name`).
    """

    unique: str
    attempt: str
    store: str
    network: str

    @property
    def build(self) -> str:
        """The container of the job's scripts."""
        return f"{self.unique}-{self.attempt}-build"

    @property
    def helper(self) -> str:
        """The container of the runner's own work."""
        return f"{self.unique}-{self.attempt}-predefined"

    def service(self, path: str, index: int) -> str:
        """The container of a service; ``path`` is its image without port and version."""
        return f"{self.unique}-{self.attempt}-{path.replace('/', '__')}-{index}"

    def kept_volume(self, destination: str, *, protected: bool) -> str:
        """The volume of a path that stays for the next job of the slot."""
        return f"runner-{self.store}-cache-{path_hash(destination)}{suffix(protected=protected)}"

    def job_volume(self, destination: str, *, protected: bool) -> str:
        """The volume of a path that goes with the job."""
        return f"{self.unique}-{self.attempt}-cache-{path_hash(destination)}{suffix(protected=protected)}"


def unique_name(short_token: str, project_id: int, slot: int) -> str:
    """The name of a slot of a project, which is also the host name of its jobs."""
    return host_label(f"runner-{short_token}-project-{project_id}-concurrent-{slot}")


def network_name(short_token: str, project_id: int, slot: int, job_id: int) -> str:
    """The network of a job that has its own."""
    return host_label(f"runner-{short_token}-{project_id}-{slot}-{job_id}")


def store_name(token: str, system_id: str, project_id: int, slot: int) -> str:
    """What the volumes that a slot of a project keeps have in common; tells nothing of the token."""
    return hashlib.sha256(f"{token}-{system_id}-{project_id}-{slot}".encode()).hexdigest()[:32]


def path_hash(path: str) -> str:
    """The part of a volume's name that a path in the container gives."""
    return hashlib.md5(path.encode(), usedforsecurity=False).hexdigest()


def suffix(*, protected: bool) -> str:
    """What divides volumes of protected refs from the others."""
    return "-protected" if protected else ""


def host_label(text: str) -> str:
    """A label of RFC 1123: small letters, digits and hyphens, not more than 63, no hyphen first."""
    return re.sub(r"^[^a-z0-9]+", "", re.sub(r"[^-a-z0-9]", "", text.lower()))[:_LABEL_MAX]

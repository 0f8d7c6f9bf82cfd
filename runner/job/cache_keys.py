"""Under which keys a cache is looked for."""

from __future__ import annotations

from runner.archive.cache_key import CacheKey, fallback_key
from runner.coordinator.payload import Cache
from runner.job.plan import JobPlan

# Said where a broken archive may have left something anywhere in the project.
PROJECT_STAYS = "The project directory is not removed: the job needs what is in it"


def fallbacks(plan: JobPlan, cache: Cache) -> tuple[list[CacheKey], list[str]]:
    """The keys behind the first one, those that are none left out, and warnings about all of them."""
    found, complaints = [], []
    for text in cache.fallback_keys:
        key = plan.cache_key(text) if text else CacheKey("", "")
        complaints += [key.complaint] if key.complaint else []
        found.append(key)
    text = plan.variables.get("CACHE_FALLBACK_KEY") or ""
    last, more = fallback_key(plan.variables.expand(text), hashed=plan.hashes_cache_keys)
    return [key for key in [*found, last] if key.stored], [*complaints, *more]

"""Reads ``[runners.cache]`` (``config-cli-daemon.md`` 4.2). What cannot be used leaves the job with caches on this host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Protocol

from runner.config import schema
from runner.config.model import AzureConfig, CacheConfig, GcsConfig, S3Config
from runner.config.schema import Key

TYPES = ("", "s3", "gcs", "azure")
AUTHENTICATION = ("", "access-key", "iam")
# What a key of the file says, and what the server is told.
ENCRYPTION = {"s3": "AES256", "aes256": "AES256", "kms": "aws:kms", "aws:kms": "aws:kms"}
ENCRYPTION |= {"dsse-kms": "aws:kms:dsse", "aws:kms:dsse": "aws:kms:dsse"}
LOCAL = "caches stay on this host"
_WORD = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")
# Known, without effect here.
_PASSED_OVER = ("assume_role_max_concurrency", "disable_assume_role_credentials_caching")


class Reader(Protocol):
    """What the reader of the file lends to the reader of a table."""

    def table(self, raw: Mapping[str, Any], keys: tuple[Key, ...], *place: str | int) -> dict[str, Any]:
        """Typed values by their names in lower case."""
        ...

    def warn(self, code: str, text: str, *place: str | int, hint: str = "") -> None:
        """Say what is odd."""
        ...

    def fail(self, code: str, text: str, *place: str | int, hint: str = "") -> None:
        """Say what takes something out of use."""
        ...


def cache(reader: Reader, raw: Any, place: tuple[str | int, ...]) -> CacheConfig:
    """The table, as far as it can be used."""
    if not isinstance(raw, dict):
        return CacheConfig()
    place = (*place, "cache")
    values = _named(reader.table(raw, schema.CACHE, *place), schema.CACHE)
    kind = values.pop("type", "").lower()
    inner = {name: _inner(reader, values.pop(name, {}), name, place) for name in ("s3", "gcs", "azure")}
    found = CacheConfig(
        **values,
        type=kind,
        s3=S3Config(**inner["s3"]),
        gcs=GcsConfig(**inner["gcs"]),
        azure=AzureConfig(**inner["azure"]),
    )
    problem = _problem(found)
    if problem:
        reader.warn("unusable-cache", f"{problem}: {LOCAL}", *place)
        return CacheConfig()
    return found


def _inner(reader: Reader, raw: Mapping[str, Any], name: str, place: tuple[str | int, ...]) -> dict[str, Any]:
    keys = schema.INNER_TABLES[f"cache.{name}"]
    found = _named(reader.table(raw, keys, *place, name), keys)
    for key in _PASSED_OVER:
        found.pop(key, None)
    encryption = found.get("server_side_encryption", "")
    if encryption:
        known = ENCRYPTION.get(encryption.lower())
        if known is None:
            text = f"{encryption!r} is no kind of encryption, none is asked for"
            reader.warn("bad-value", text, *place, name, "ServerSideEncryption", hint="S3, KMS or DSSE-KMS")
        found["server_side_encryption"] = known or ""
    if "authentication_type" in found:
        found["authentication_type"] = found["authentication_type"].lower()
    return found


def _named(values: Mapping[str, Any], keys: tuple[Key, ...]) -> dict[str, Any]:
    """The same by the names of the model."""
    names = {key.name.lower(): _WORD.sub("_", key.name).lower() for key in keys}
    return {names[name]: value for name, value in values.items()}


def _problem(found: CacheConfig) -> str:
    """Why a remote cache cannot be used."""
    if found.type not in TYPES:
        return f"{found.type!r} is no type of a cache"
    s3 = found.s3
    if found.type == "s3" and not s3.bucket_name:
        return "the S3 cache has no BucketName"
    if found.type == "s3" and s3.authentication_type not in AUTHENTICATION:
        return f"{s3.authentication_type!r} is no AuthenticationType of an S3 cache"
    if found.type == "s3" and s3.authentication_type == "access-key" and not (s3.access_key and s3.secret_key):
        return "the S3 cache has no AccessKey and SecretKey"
    if found.type == "gcs" and not found.gcs.bucket_name:
        return "the GCS cache has no BucketName"
    if found.type == "azure" and not (found.azure.account_name and found.azure.container_name):
        return "the Azure cache has no AccountName and ContainerName"
    return ""

"""Opens the bucket that ``[runners.cache]`` names."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC
from typing import Any

from runner.archive.object_store import CLIENT_OPTIONS, NO_RETRIES, ObjectStore
from runner.config.model import AzureConfig, CacheConfig, GcsConfig, S3Config
from runner.errors import ArchiveError

AMAZON = "amazonaws.com"
GOOGLE = "googleapis.com"
AZURE = "blob.core.windows.net"
MISSING = "needs the package obstore: install pyrunner[cache]"


def open_bucket(config: CacheConfig) -> ObjectStore | None:
    """The bucket, None where caches stay on this host. Raises :class:`ArchiveError` for what cannot be opened."""
    if not config.type:
        return None
    try:
        import obstore.store  # noqa: F401
    except ImportError as error:
        raise ArchiveError(f"the {config.type} cache {MISSING}") from error
    try:
        match config.type:
            case "s3":
                store = _s3(config.s3)
            case "gcs":
                store = _gcs(config.gcs)
            case _:
                store = _azure(config.azure)
    except ArchiveError:
        raise
    except Exception as error:
        # The library has no common error for what it is not given; its words may quote a key.
        raise ArchiveError(f"the {config.type} cache cannot be opened: {type(error).__name__}") from error
    store.is_secret = config.redact_url
    return store


def _s3(config: S3Config) -> ObjectStore:
    from obstore.store import S3Store

    scheme = "http" if config.insecure else "https"
    address, region = config.server_address, config.bucket_location
    is_amazon = not address or address.endswith(AMAZON)
    path_style = not is_amazon if config.path_style is None else config.path_style
    host = _amazon_host(config, region or "us-east-1") if is_amazon else address
    base = f"{scheme}://{host}/{config.bucket_name}" if path_style else f"{scheme}://{config.bucket_name}.{host}"
    settings: dict[str, Any] = {
        "region": region or "us-east-1",
        "virtual_hosted_style_request": not path_style,
        "endpoint": f"{scheme}://{host}" if path_style else base,
        "unsigned_payload": not config.insecure,
    }
    if config.server_side_encryption:
        settings["server_side_encryption"] = config.server_side_encryption
    if config.server_side_encryption_key_id:
        settings["sse_kms_key_id"] = config.server_side_encryption_key_id
    role = config.role_arn or config.upload_role_arn
    kind = config.authentication_type or ("access-key" if address and config.access_key and config.secret_key else "iam")
    if kind == "access-key" and not role:
        settings |= {"access_key_id": config.access_key, "secret_access_key": config.secret_key}
        if config.session_token:
            settings["session_token"] = config.session_token
    provider: dict[str, Any] = {"credential_provider": _role(config, role)} if role else {}
    options = {**CLIENT_OPTIONS, "allow_http": config.insecure}
    store = S3Store(config.bucket_name, config=settings, client_options=options, retry_config=NO_RETRIES, **provider)  # type: ignore[arg-type]
    return ObjectStore(store, base)


def _amazon_host(config: S3Config, region: str) -> str:
    if config.accelerate:
        return f"s3-accelerate.{'dualstack.' if config.dual_stack else ''}{AMAZON}"
    return f"s3.{'dualstack.' if config.dual_stack else ''}{region}.{AMAZON}"


def _role(config: S3Config, role: str) -> Any:
    """Gives the credentials of a role, good for an hour; asked again when they are about to expire."""
    try:
        import boto3
    except ImportError as error:
        raise ArchiveError("RoleARN of the s3 cache needs the package boto3: install pyrunner[cache-role]") from error
    keys: dict[str, Any] = {}
    if config.access_key and config.secret_key:
        keys = {"aws_access_key_id": config.access_key, "aws_secret_access_key": config.secret_key}
        if config.session_token:
            keys["aws_session_token"] = config.session_token
    client = boto3.Session(region_name=config.bucket_location or "us-east-1", **keys).client("sts")

    async def credentials() -> dict[str, Any]:
        answer = await asyncio.to_thread(client.assume_role, RoleArn=role, RoleSessionName="pyrunner")
        found = answer["Credentials"]
        return {
            "access_key_id": found["AccessKeyId"],
            "secret_access_key": found["SecretAccessKey"],
            "token": found["SessionToken"],
            "expires_at": found["Expiration"].astimezone(UTC),
        }

    return credentials


def _gcs(config: GcsConfig) -> ObjectStore:
    from obstore.store import GCSStore

    domain = config.universe_domain or GOOGLE
    base = f"https://storage.{domain}"
    settings: dict[str, Any] = {"base_url": base} if config.universe_domain else {}
    if config.credentials_file:
        settings["service_account"] = config.credentials_file
    elif config.access_id and config.private_key:
        account = {
            "type": "service_account",
            "client_email": config.access_id,
            "private_key": config.private_key.replace("\\n", "\n"),
            "private_key_id": "",
        }
        settings["service_account_key"] = json.dumps(account)
    options: Any = CLIENT_OPTIONS
    retries: Any = NO_RETRIES
    return ObjectStore(
        GCSStore(config.bucket_name, config=settings, client_options=options, retry_config=retries),  # type: ignore[arg-type]
        f"{base}/{config.bucket_name}",
    )


def _azure(config: AzureConfig) -> ObjectStore:
    from obstore.store import AzureStore

    base = f"https://{config.account_name}.{config.storage_domain or AZURE}"
    settings: dict[str, Any] = {"account_name": config.account_name, "endpoint": base}
    if config.account_key:
        settings["account_key"] = config.account_key
    options: Any = CLIENT_OPTIONS
    retries: Any = NO_RETRIES
    return ObjectStore(
        AzureStore(config.container_name, config=settings, client_options=options, retry_config=retries),  # type: ignore[arg-type]
        f"{base}/{config.container_name}",
    )

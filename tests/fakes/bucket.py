"""A ``[runners.cache]`` table for a bucket."""

from __future__ import annotations

SECRET = "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY"
BUCKET = """
  [runners.cache]
    Type = "s3"
    Path = "{path}"
    Shared = {shared}
    MaxUploadedArchiveSize = {limit}
    [runners.cache.s3]
      ServerAddress = "{address}"
      AccessKey = "{access}"
      SecretKey = "{secret}"
      BucketName = "bkt"
      BucketLocation = "us-east-1"
      Insecure = true
"""


def bucket(address: str, *, path: str = "", shared: bool = False, limit: int = 0, more: str = "", **keys: str) -> str:
    access, secret = keys.get("access", "AKIDEXAMPLE"), keys.get("secret", SECRET)
    text = BUCKET.format(address=address, path=path, shared=str(shared).lower(), limit=limit, access=access, secret=secret)
    return text + more

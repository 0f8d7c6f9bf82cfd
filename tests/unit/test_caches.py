"""Keys of caches, places on this host, and the table of the configuration."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from executors.registry import KINDS
from executors.workspace import Entry
from runner.archive.buckets import open_bucket
from runner.archive.cache_key import cache_key, fallback_key, object_name
from runner.archive.local_store import LocalStore
from runner.config.load import Loaded, parse
from runner.config.model import AzureConfig, CacheConfig, GcsConfig, S3Config
from runner.errors import ArchiveError
from runner.job.cache_save import fingerprint


@pytest.mark.parametrize(
    ("raw", "stored"),
    [
        ("foo/../bar", "bar"),
        ("../a", "a"),
        ("a/../../b", "b"),
        ("job\\name/git\\ref", "job/name/git/ref"),
        ("foo / bar ", "foo / bar"),
        ("foo/ /bar", "foo/ /bar"),
        ("a/ ", "a"),
        ("...", "..."),
        ("%5C", "%5C"),
        ("%2e%2E/x%2Fy", "x/y"),
        ("..", ""),
        ("a/.. ", "a"),
        (". ", ""),
        ("\\.", ""),
        (" ", ""),
    ],
)
def test_keys_are_sanitised(raw: str, stored: str) -> None:
    assert cache_key(raw, hashed=False).stored == stored


@given(st.text(alphabet=st.sampled_from("a./\\ %2efF\n\t"), max_size=30))
def test_no_key_leads_out_of_its_directory(raw: str) -> None:
    key = cache_key(raw, hashed=False)
    parts = key.stored.split("/") if key.stored else []
    assert not {"", ".", ".."} & set(parts)
    assert cache_key(key.stored, hashed=False).stored == key.stored, "what is clean stays as it is"
    assert bool(key.complaint) == (key.stored != raw)


@pytest.mark.parametrize("raw", ["main-protected", "main-protected. .", "x/../main-protected", "a\\b-protected ", "m-protected/"])
@pytest.mark.parametrize("hashed", [True, False])
def test_a_fallback_key_of_protected_branches_is_refused(raw: str, hashed: bool) -> None:
    key, complaints = fallback_key(raw, hashed=hashed)
    assert key.stored == ""
    assert "not allowed to end in" in complaints[0]


def test_names_of_objects() -> None:
    plain, hashed = cache_key("a/b c", hashed=False), cache_key("k", hashed=True)
    assert object_name(plain, path="/p/", short_token="t", shared=False, project_id=9) == "p/runner/t/project/9/a/b c"
    assert object_name(hashed, path="", short_token="t", shared=True, project_id=9) == f"project/9/82/{hashed.stored}"
    assert hashed.other.stored == "k"
    assert hashed.other.other.stored == hashed.stored


def entry(path: str, *, mtime_ns: int = 10**9, size: int = 1) -> Entry:
    return Entry(path=path, kind="file", mode=0o644, size=size, mtime_ns=mtime_ns)


def test_a_fingerprint_tells_files_apart() -> None:
    one = fingerprint([entry("a"), entry("b")], "slot")
    assert one == fingerprint([entry("a"), entry("b")], "slot")
    elsewhere = fingerprint([entry("a"), entry("b")], "another slot")
    assert elsewhere[0] != one[0], "jobs that run at once make files of the same time"
    assert elsewhere[1] == one[1]
    for other in ([entry("a")], [entry("a"), entry("c")], [entry("a"), entry("b", size=2)], [entry("ab"), entry("")]):
        assert fingerprint(other, "slot")[1] != one[1]
    later = fingerprint([entry("a"), entry("b", mtime_ns=10**9 + 5)], "slot")
    assert later[0] != one[0]
    assert later[1] == one[1], "archives keep seconds"


def test_a_draft_that_is_not_kept_leaves_what_was_there(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path / "cache"), str(tmp_path / "cache" / "group" / "app"))
    with store.opened("k") as found:
        assert found is None
    with store.draft("k", "w") as draft:
        os.write(draft.fd, b"one")
        draft.keep({}, mtime_ns=5 * 10**9, tag='"t"')
    with pytest.raises(RuntimeError), store.draft("k", "w") as draft:
        os.write(draft.fd, b"two")
        raise RuntimeError
    with store.opened("k") as found:
        assert found is not None
        assert (found.path.read_bytes(), found.mtime_ns, found.size) == (b"one", 5 * 10**9, 3)
        assert found.tag in ('"t"', ""), "where the file system keeps such notes"
    place = tmp_path / "cache" / "group" / "app" / "k"
    assert sorted(os.listdir(place)) == ["cache.zip", "metadata.json"]
    assert (place / "cache.zip").stat().st_mode & 0o777 == 0o600
    assert place.stat().st_mode & 0o777 == 0o700


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    store = LocalStore(str(tmp_path), str(tmp_path / "app"))
    (tmp_path / "app" / "k").mkdir(parents=True)
    (tmp_path / "app" / "k" / ".cache.zip.w").write_bytes(b"half")
    with store.draft("k", "w") as draft:
        os.write(draft.fd, b"x")
        draft.keep({})
    assert sorted(os.listdir(tmp_path / "app" / "k")) == ["cache.zip", "metadata.json"]


@pytest.mark.parametrize("planted", ["group", "group/app", "group/app/k"])
def test_no_link_below_the_root_is_followed(tmp_path: Path, planted: str) -> None:
    outside = tmp_path / "outside"
    (outside / "app" / "k").mkdir(parents=True)
    (outside / "k").mkdir()
    link = tmp_path / "cache" / planted
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    store = LocalStore(str(tmp_path / "cache"), str(tmp_path / "cache" / "group" / "app"))
    with pytest.raises(OSError, match=r"symbolic|Not a directory"), store.draft("k", "w"):
        pass
    assert not [path for path in outside.rglob("*") if path.is_file()]


def test_the_root_may_be_a_link_of_the_administrators(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    store = LocalStore(str(tmp_path / "cache"), str(tmp_path / "cache" / "app"))
    with store.draft("k", "w") as draft:
        draft.keep({})
    assert (tmp_path / "disk" / "app" / "k" / "cache.zip").is_file()


CONFIG = """
[[runners]]
  name = "r"
  url = "http://localhost"
  token = "t"
  executor = "shell"
  [runners.cache]
"""


def load(tables: str) -> tuple[CacheConfig, Loaded]:
    loaded = parse((CONFIG + tables).encode(), Path("config.toml"), environ={}, executors=KINDS)
    assert loaded.config is not None
    return loaded.config.runners[0].cache, loaded


def test_a_table_in_any_letters_is_read() -> None:
    found, loaded = load(
        'TYPE = "S3"\nshared = true\nMaxUploadedArchiveSize = 7\n[runners.cache.S3]\nserveraddress = "h:1"\n'
        'AccessKey = "a"\nSecretKey = "s"\nbucketname = "b"\nServerSideEncryption = "KMS"\nRoleARN = "arn"\nPathStyle = false\n'
    )
    assert loaded.diagnostics == ()
    s3 = S3Config(
        server_address="h:1",
        access_key="a",
        secret_key="s",
        bucket_name="b",
        server_side_encryption="aws:kms",
        role_arn="arn",
        path_style=False,
    )
    assert found == CacheConfig(type="s3", shared=True, max_uploaded_archive_size=7, s3=s3)


@pytest.mark.parametrize(
    ("tables", "problem"),
    [
        ('Type = "ftp"', "no type of a cache"),
        ('Type = "s3"', "no BucketName"),
        ('Type = "s3"\n[runners.cache.s3]\nBucketName = "b"\nAuthenticationType = "magic"', "no AuthenticationType"),
        ('Type = "s3"\n[runners.cache.s3]\nBucketName = "b"\nAuthenticationType = "access-key"', "no AccessKey"),
        ('Type = "gcs"', "no BucketName"),
        ('Type = "azure"\n[runners.cache.azure]\nAccountName = "a"', "no AccountName and ContainerName"),
    ],
)
def test_what_cannot_be_used_leaves_caches_on_this_host(tables: str, problem: str) -> None:
    found, loaded = load(tables)
    assert found == CacheConfig()
    assert loaded.config is not None
    assert loaded.config.runners[0].disabled is None, "a cache never stops a runner"
    assert any(problem in one.text and "on this host" in one.text for one in loaded.diagnostics)


def test_a_misspelt_key_is_named() -> None:
    _, loaded = load('Type = "s3"\n[runners.cache.s3]\nBucketNam = "b"')
    assert any(one.hint and "bucketname" in one.hint.lower() for one in loaded.diagnostics)


@pytest.mark.parametrize(
    ("config", "base"),
    [
        (S3Config(bucket_name="b", bucket_location="eu-west-1"), "https://b.s3.dualstack.eu-west-1.amazonaws.com/k"),
        (S3Config(bucket_name="b", dual_stack=False), "https://b.s3.us-east-1.amazonaws.com/k"),
        (S3Config(bucket_name="b", accelerate=True, dual_stack=False), "https://b.s3-accelerate.amazonaws.com/k"),
        (S3Config(bucket_name="b", server_address="minio:9000", insecure=True), "http://minio:9000/b/k"),
        (S3Config(bucket_name="b", server_address="s3.example.com", path_style=False), "https://b.s3.example.com/k"),
    ],
)
def test_addresses_of_s3(config: S3Config, base: str) -> None:
    store = open_bucket(CacheConfig(type="s3", s3=config))
    assert store is not None
    assert store.url("k") == base


def test_addresses_of_other_clouds() -> None:
    azure = open_bucket(CacheConfig(type="azure", azure=AzureConfig(account_name="a", container_name="c", account_key="a2V5")))
    assert azure is not None
    assert azure.url("x y") == "https://a.blob.core.windows.net/c/x%20y"
    assert open_bucket(CacheConfig()) is None


def test_a_key_that_is_none_is_not_quoted(tmp_path: Path) -> None:
    gcs = GcsConfig(bucket_name="b", access_id="a", private_key="very secret")
    with pytest.raises(ArchiveError, match="cannot be opened") as caught:
        open_bucket(CacheConfig(type="gcs", gcs=gcs))
    assert "very secret" not in str(caught.value)

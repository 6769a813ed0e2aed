import hashlib
import io
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from s3 import PASSING, S3, _moto, s3, s3_root  # noqa: F401

from bitlm import storage
from bitlm.errors import SourceError
from bitlm.storage import requests as requests_module
from bitlm.storage import urls
from bitlm.storage.cache import Cache, CacheFile
from bitlm.storage.local import remove_partial


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3_root")
    return str(tmp_path / "root") if request.param == "local" else f"memory://{secrets.token_hex(4)}"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests_module.time, "sleep", lambda seconds: None)


def fetched(url: str, data: bytes, folder: Path) -> bytes:
    """The contents of a copy in a new cache."""
    file = CacheFile("f", url, storage.Digest(len(data), hashlib.sha256(data).hexdigest()))
    [copy] = Cache(tempfile.mkdtemp(dir=folder), 10**9).hold([file])
    copy.release()
    return Path(copy.path).read_bytes()


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        (("a", "b"), "a/b"),
        (("/", "b"), "/b"),
        (("s3://bucket", "b", "c/d"), "s3://bucket/b/c/d"),
        (("s3://bucket/", "/b/"), "s3://bucket/b"),
        (("memory://", "b"), "memory://b"),
        (("a", ""), "a"),
    ],
)
def test_join(parts: tuple[str, ...], joined: str) -> None:
    assert storage.join(*parts) == joined


def test_relative_paths_are_made_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert storage.local_path("a/../b") == str(tmp_path / "b")
    assert storage.local_path("file:///x/y") == "/x/y"
    assert not storage.is_local("s3://a/b")
    assert storage.is_local("file:///a")


def test_files_come_back_as_they_were_written(root: str) -> None:
    data = os.urandom(100_000)
    url = storage.join(root, "a/b/data.bin")
    assert not storage.exists(url)
    assert storage.list_files(root) == []
    storage.write_atomic(url, b"old")
    storage.write_atomic(url, data)
    storage.write_atomic(storage.join(root, "a-c"), b"")
    assert storage.read_bytes(url) == data
    assert storage.size(url) == len(data)
    assert storage.sha256(url) == (len(data), hashlib.sha256(data).hexdigest())
    assert storage.list_sizes(root) == {"a-c": 0, "a/b/data.bin": len(data)}
    assert storage.list_files(storage.join(root, "a")) == ["b/data.bin"]
    assert storage.list_folders(root) == ["a"]
    assert [file.path for file in storage.find_tagged(storage.join(root, "a/*/*.bin"), (".bin",)).files] == [
        "b/data.bin"
    ]
    assert storage.read_bytes(storage.find_tagged(storage.join(root, "**/data.*"), (".bin",)).files[0].url) == data
    storage.copy(url, storage.join(root, "copy/data"))
    assert storage.read_bytes(storage.join(root, "copy/data")) == data
    storage.remove_tree(storage.join(root, "a"))
    storage.remove_tree(storage.join(root, "a"))
    assert storage.list_files(root) == ["a-c", "copy/data"]


def test_what_is_absent_is_told_with_its_url(root: str) -> None:
    url = storage.join(root, "none")
    for ask in (storage.read_bytes, storage.size, storage.sha256, storage.stat_tag):
        with pytest.raises(SourceError, match="none: there is no such file"):
            ask(url)
    assert storage.read_if_exists(url) is None
    assert storage.list_folders(url) == []
    assert storage.find_tagged(storage.join(root, "none/*"), (".txt",)).files == []


def test_stat_tag_follows_the_contents(root: str) -> None:
    url = storage.join(root, "f")
    storage.write_atomic(url, b"1234")
    first = storage.stat_tag(url)
    assert first.bytes == 4
    assert storage.stat_tag(url) == first
    storage.write_atomic(url, b"4321")
    assert storage.stat_tag(url).etag != first.etag


@pytest.mark.parametrize("read_ahead", [0, 1000])
def test_an_open_file_reads_and_seeks_like_the_bytes_it_holds(root: str, read_ahead: int) -> None:
    data = os.urandom(50_000)
    url = storage.join(root, "f")
    storage.write_atomic(url, data)
    with storage.open_read(url, read_ahead) as file:
        plain = io.BytesIO(data)
        for step in ((0, 0), (10, 0), (-7, 2), (49_990, 0), (25_000, 0), (-100, 1), (60_000, 0)):
            assert file.seek(*step) == plain.seek(*step)
            for length in (3, 4000, 0):
                assert file.read(length) == plain.read(length)
                assert file.tell() == plain.tell()
        file.seek(11)
        assert file.read() == data[11:]
    with storage.open_read(url, 5000) as file:
        assert list(file) == list(io.BytesIO(data))
    with pytest.raises(SourceError, match="none: there is no such file"):
        storage.open_read(storage.join(root, "none"))


def test_exclusive_create_has_one_winner(root: str) -> None:
    url = storage.join(root, "claims/v1")
    assert storage.write_new(url, b"first")
    assert not storage.write_new(url, b"second")
    assert not storage.write_new(url, b"first")
    assert storage.read_bytes(url) == b"first"
    assert storage.list_files(root) == ["claims/v1"]


def test_exclusive_create_by_many_at_once(tmp_path: Path) -> None:
    url, barrier = str(tmp_path / "claim"), threading.Barrier(8)

    def claim(i: int) -> bool:
        barrier.wait()
        return storage.write_new(url, b"%d" % i)

    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(claim, range(8)))
    assert won.count(True) == 1
    assert storage.read_bytes(url) == b"%d" % won.index(True)


def test_upload(root: str, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(300_000))
    url = storage.join(root, "x/data")
    sent = storage.upload(str(source), url)
    assert sent == (300_000, hashlib.sha256(source.read_bytes()).hexdigest())
    assert storage.read_bytes(url) == source.read_bytes()


def test_a_plain_name_with_pattern_letters_is_found(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("x")
    assert [f.url for f in storage.find_tagged(str(tmp_path / "a[1].txt"), (".txt",)).files] == [f"{tmp_path}/a[1].txt"]


def test_a_write_killed_midway_leaves_nothing_visible(tmp_path: Path) -> None:
    target = tmp_path / "data"
    storage.write_atomic(str(target), b"old")
    code = f"""
        import os, signal
        from bitlm import storage
        os.replace = lambda *a: os.kill(os.getpid(), signal.SIGKILL)
        storage.write_atomic({str(target)!r}, b"new" * 1000)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)])
    assert done.returncode == -signal.SIGKILL
    assert len(list(tmp_path.iterdir())) == 2, "the partial file should be there, else nothing was tested"
    assert target.read_bytes() == b"old"
    assert storage.list_files(str(tmp_path)) == ["data"]
    remove_partial(str(tmp_path))
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_an_exception_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for write in (storage.write_atomic, storage.write_new):
        with pytest.raises(SourceError, match="no space left"):
            write(str(tmp_path / "data"), b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_link_to_a_folder_is_not_overlooked(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "f").write_text("x")
    (tmp_path / "link").symlink_to("real")
    assert storage.list_files(str(tmp_path)) == ["link", "real/f"]


@pytest.mark.parametrize("how", ["503 SlowDown", "500 InternalError", "drop", "lose"])
def test_a_passing_fault_is_survived(s3: S3, how: str) -> None:  # noqa: F811
    url = storage.join(s3.root, "f")
    for method in ("PUT", "GET"):
        s3.fail(method, "/root/f", how, times=2)
    storage.write_atomic(url, b"data")
    assert storage.read_bytes(url) == b"data"
    assert len(s3.requests) >= 6


def test_an_answer_cut_in_the_middle_is_read_again(s3: S3, tmp_path: Path) -> None:  # noqa: F811
    url, data = storage.join(s3.root, "f"), os.urandom(200_000)
    storage.write_atomic(url, data)
    s3.fail("GET", "/root/f", "cut", times=3)
    assert storage.read_bytes(url) == data
    s3.fail("GET", "/root/f", "cut", times=1)
    assert storage.sha256(url)[1] == hashlib.sha256(data).hexdigest()
    s3.fail("GET", "/root/f", "cut", times=1)
    assert fetched(url, data, tmp_path) == data


def test_a_read_of_an_open_file_is_repeated_from_where_it_began(s3: S3) -> None:  # noqa: F811
    url, data = storage.join(s3.root, "f"), os.urandom(100_000)
    storage.write_atomic(url, data)
    with storage.open_read(url) as file:
        read = b""
        for how in ("cut", "drop", "503 SlowDown", "lose"):
            s3.fail("GET", "/root/f", how, times=2)
            read += file.read(25_000)
    assert read == data
    assert not s3.faults[-1]("GET", "/root/f"), "a fault was not met"


def test_a_file_replaced_while_it_is_read_is_told(s3: S3) -> None:  # noqa: F811
    url = storage.join(s3.root, "f")
    storage.write_atomic(url, b"a" * 1000)
    with storage.open_read(url) as file:
        assert file.read(10) == b"a" * 10
        storage.write_atomic(url, b"b" * 1000)
        with pytest.raises(SourceError, match="root/f: it was replaced while it was being read; run again"):
            file.read(10)


def test_requests_fail_at_random_and_nothing_is_lost(s3: S3, tmp_path: Path) -> None:  # noqa: F811
    done = s3.disturb(0.12, seed=1)
    data = {f"d/{i}": os.urandom(1000 * i) for i in range(10)}
    for name, content in data.items():
        assert storage.write_new(storage.join(s3.root, name), content)
    assert storage.list_sizes(s3.root) == {name: len(data[name]) for name in sorted(data)}
    for name, content in data.items():
        url = storage.join(s3.root, name)
        storage.copy(url, storage.join(s3.root, "copy"))
        assert storage.read_bytes(storage.join(s3.root, "copy")) == content
        assert storage.sha256(url) == (len(content), hashlib.sha256(content).hexdigest())
        assert fetched(url, content, tmp_path) == content
    assert set(done) == set(PASSING), done
    storage.remove_tree(s3.root)
    assert storage.list_files(s3.root) == []


def test_a_lost_answer_does_not_lose_the_claim(s3: S3) -> None:  # noqa: F811
    s3.fail("PUT", "/root/claim", "lose", times=1)
    assert storage.write_new(storage.join(s3.root, "claim"), b"mine")
    assert not storage.write_new(storage.join(s3.root, "claim"), b"mine")


def test_a_lasting_fault_ends_and_is_told(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(urls, "ATTEMPTS", 2)  # of the S3 client
    url = storage.join(s3.root, "f")
    s3.fail("PUT", "/root/f", "503 SlowDown")
    with pytest.raises(SourceError, match=r"root/f: the store gave no answer.*AWS_ENDPOINT_URL"):
        storage.write_atomic(url, b"x")
    assert len(s3.requests) == 2 * requests_module.ATTEMPTS
    s3.faults.clear()
    assert storage.list_files(s3.root) == []


def test_access_denied_ends_at_once(s3: S3) -> None:  # noqa: F811
    for method in ("GET", "PUT", "HEAD"):
        s3.fail(method, "/", "403 AccessDenied")
    url = storage.join(s3.root, "f")
    for ask in (
        lambda: storage.read_bytes(url),
        lambda: storage.exists(url),
        lambda: storage.write_atomic(url, b"x"),
        lambda: storage.write_new(url, b"x"),
        lambda: storage.list_files(s3.root),
        lambda: storage.list_folders(s3.root),
        lambda: storage.find_tagged(storage.join(s3.root, "*"), ("",)),
        lambda: storage.upload(__file__, url),
    ):
        s3.requests.clear()
        with pytest.raises(SourceError, match=r"s3://.*access denied; check the credentials.*AWS_ACCESS_KEY_ID"):
            ask()
        assert len(s3.requests) <= 2


def test_a_missing_bucket_is_told(s3: S3) -> None:  # noqa: F811
    url = "s3://no-such-bucket/a/f"
    for ask in (
        storage.read_bytes,
        storage.exists,
        storage.list_files,
        storage.list_folders,
        lambda u: storage.find_tagged(u + "/*", ("",)),
        lambda u: storage.write_atomic(u, b""),
        lambda u: storage.write_new(u, b""),
        lambda u: storage.upload(__file__, u),
    ):
        with pytest.raises(SourceError, match=r"s3://no-such-bucket/a.*the bucket does not exist; create it"):
            ask(url)


def test_missing_credentials_are_told(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", os.environ["AWS_ENDPOINT_URL"] + "/")  # an instance of its own
    with pytest.raises(SourceError, match="no credentials for the store; check the credentials in the environment"):
        storage.read_bytes(storage.join(s3.root, "f"))


def test_a_multipart_upload_that_fails_leaves_nothing(s3: S3, tmp_path: Path) -> None:  # noqa: F811
    big = tmp_path / "big"
    with big.open("wb") as file:
        file.truncate(110 * 2**20)
    url = storage.join(s3.root, "big")
    s3.fail("PUT", "partNumber=2", "403 AccessDenied")
    with pytest.raises(SourceError, match="access denied"):
        storage.upload(str(big), url)
    assert any("uploadId" in path for _, path in s3.requests), "not a multipart upload: the test tests nothing"
    assert storage.list_files(s3.root) == []


def test_an_unknown_protocol_is_told() -> None:
    with pytest.raises(SourceError, match="nope://x: Protocol not known"):
        storage.exists("nope://x")


def test_no_secret_in_messages() -> None:
    with pytest.raises(SourceError) as raised:
        storage.exists("nope://me:hun@ter2@host/path?token=abc&to=a@b")
    assert "ter2" not in str(raised.value)
    assert "abc" not in str(raised.value)
    assert "host/path" in str(raised.value)


def test_a_folder_where_a_file_is_expected(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="is a folder"):
        storage.size(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError, match="a file is where a folder is expected"):
        storage.write_atomic(str(tmp_path / "file" / "x"), b"")


def test_usable_in_a_forked_child(s3: S3) -> None:  # noqa: F811
    url = storage.join(s3.root, "f")
    storage.write_atomic(url, b"data")
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        os._exit(0 if storage.read_bytes(url) == b"data" else 1)
    assert os.waitpid(child, 0)[1] == 0

"""Which files a folder or a pattern means, on this machine and in stores."""

import glob
import itertools
import os
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s3 import S3, _moto, s3, s3_root  # noqa: F401

from bitlm import storage
from bitlm.errors import SourceError
from bitlm.storage.patterns import Pattern, expand_braces

SUFFIXES = (".parquet", ".jsonl")


def found(source: Path | str) -> list[str]:
    return [file.path for file in storage.find_tagged(str(source), SUFFIXES).files]


def left_out(source: Path | str) -> dict[str, int]:
    return dict(storage.find_tagged(str(source), SUFFIXES).left_out)


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITLM_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(params=["local", "memory", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "s3":
        return request.getfixturevalue("s3_root")
    return str(tmp_path) if request.param == "local" else f"memory://{secrets.token_hex(4)}"


def write(root: str, *names: str) -> None:
    for name in names:
        storage.write_atomic(storage.join(root, name), name.encode())


FOLDER = (
    "a.parquet",
    "B.PARQUET",
    "sub/c.jsonl",
    "year=2024/_key=1/d.jsonl",
    "e.jsonl.bz2",
    "f.csv",
    "g.csv",
    "readme",
    ".hidden.parquet",
    "._a.parquet",
    "~$a.parquet",
    "a.parquet~",
    ".ipynb_checkpoints/a-checkpoint.parquet",
    "sub/.git/x.jsonl",
    "_SUCCESS",
    "_temporary/0/a.parquet",
    "__MACOSX/._a.parquet",
    "_x.parquet",
)


def test_a_folder_means_what_is_not_hidden_and_the_rest_is_told(root: str) -> None:
    write(root, *FOLDER)
    assert found(root) == ["B.PARQUET", "a.parquet", "sub/c.jsonl", "year=2024/_key=1/d.jsonl"]
    told = left_out(root)
    assert told.pop("_temporary/") == 1
    assert told.pop("__MACOSX/", 1) == 1
    assert told == {".jsonl.bz2": 1, ".csv": 2, "no ending": 1, ".parquet~": 1, "_*.parquet": 1}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*", ["B.PARQUET", "_x.parquet", "a.parquet"]),
        ("*.parquet", ["_x.parquet", "a.parquet"]),
        ("?.parquet", ["a.parquet"]),
        ("[a-c].parquet", ["a.parquet"]),
        ("[!a].PARQUET", ["B.PARQUET"]),
        (".*.parquet", ["._a.parquet", ".hidden.parquet"]),
        ("**", ["B.PARQUET", "a.parquet", "sub/c.jsonl", "year=2024/_key=1/d.jsonl"]),
        ("**/*.jsonl", ["sub/c.jsonl", "year=2024/_key=1/d.jsonl"]),
        ("**/a.parquet", ["a.parquet"]),
        ("**.parquet", ["_x.parquet", "a.parquet"]),
        ("sub/**/c.jsonl", ["c.jsonl"]),
        ("{sub,year=*}/**/*.jsonl", ["sub/c.jsonl", "year=2024/_key=1/d.jsonl"]),
        ("{a,B,a}.{parquet,PARQUET}", ["B.PARQUET", "a.parquet"]),
        ("_temporary/*/*.parquet", ["0/a.parquet"]),
        ("*/0/*.parquet", []),
        ("_*/0/*.parquet", ["_temporary/0/a.parquet"]),
        (".ipynb_checkpoints", ["a-checkpoint.parquet"]),
        (".ipynb_checkpoints/*", ["a-checkpoint.parquet"]),
        ("_x.parquet", ["_x.parquet"]),
        ("nothing*/*", []),
    ],
)
def test_a_pattern(pattern: str, expected: list[str], root: str) -> None:
    write(root, *FOLDER)
    assert found(storage.join(root, pattern)) == expected


NAMES = st.sampled_from(["a", "b", "ab", "b.x"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: "/".join(names) + ".f")
PARTS = st.lists(st.sampled_from(["a", "b.x", "*", "?", "*.x", "[ab]", "[!a]*", "**"]), max_size=3)
LAST = st.sampled_from(["*.f", "a*", "?.f", "[ab].*", "*[!x].f", "**"])


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(paths=st.sets(PATHS, max_size=8), parts=PARTS, last=LAST)
def test_patterns_match_what_a_glob_does(
    paths: set[str], parts: list[str], last: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, pattern = tmp_path_factory.mktemp("tree"), "/".join([*parts, last])
    write(str(folder), *paths)
    expected = {
        path for path in glob.glob(pattern, root_dir=folder, recursive=True) if os.path.isfile(f"{folder}/{path}")
    }
    assert {path for path in paths if Pattern(pattern, (".f",)).match(path)[0]} == expected
    told = storage.find_tagged(f"{folder}/{pattern}", (".f",))
    assert {Path(file.url) for file in told.files} == {folder / path for path in expected}


def test_braces() -> None:
    assert expand_braces("a{b,c{d,e}}f") == ["abf", "acdf", "acef"]
    assert expand_braces("{x}{}") == ["{x}{}"]
    with pytest.raises(SourceError, match="more than 1000 patterns: use a wildcard"):
        expand_braces("{a,b}" * 30)


def test_a_folder_that_is_named_like_a_file_holds_its_parts(root: str) -> None:
    write(root, "x.parquet/part-0.snappy.parquet", "x.parquet/_SUCCESS", "x.parquet/p=1/part-1.parquet", "y.parquet")
    write(root, "x.parquet/_delta_log/0.parquet", "other/z.parquet")
    parts = ["x.parquet/p=1/part-1.parquet", "x.parquet/part-0.snappy.parquet"]
    assert found(storage.join(root, "*.parquet")) == [*parts, "y.parquet"]
    assert found(storage.join(root, "*")) == [*parts, "y.parquet"]
    assert found(storage.join(root, "**/*.parquet")) == ["other/z.parquet", *parts, "y.parquet"]
    assert left_out(storage.join(root, "*.parquet")) == {"_delta_log/": 1}
    for source in ("x.parquet", "x.parquet/"):
        assert found(storage.join(root, "") + f"/{source}") == [part.removeprefix("x.parquet/") for part in parts]


@pytest.mark.parametrize(
    "name", ["a b", "a+b", "50%", "a%20b", "#1", "a[1]", "a*", "x?y", "{1,2}", "naïve", "文", "a'\"b"]
)
def test_names_with_letters_of_patterns_and_urls(name: str, root: str) -> None:
    write(root, f"{name}/{name}.jsonl")
    for source in (f"{name}/{name}.jsonl", name, f"{name}/"):
        [file] = storage.find_tagged(f"{root}/{source}", SUFFIXES).files
        assert file.path.endswith(f"{name}.jsonl")
        assert storage.read_bytes(file.url).decode() == f"{name}/{name}.jsonl"
        assert storage.stat_tag(file.url) == file.tag


def test_a_name_that_begins_another(root: str) -> None:
    write(root, "data/a.jsonl", "data2/b.jsonl", "data.jsonl")
    assert found(storage.join(root, "data")) == ["a.jsonl"]
    assert found(storage.join(root, "data*")) == ["data.jsonl"]


def test_the_order_is_that_of_the_paths(root: str) -> None:
    names = ["a/z.jsonl", "a.jsonl", "B.jsonl", "ab/1.jsonl", "a-b.jsonl", "é.jsonl"]
    write(root, *names)
    assert found(root) == sorted(names)


# Local only.


def test_links_are_followed_and_no_file_counts_twice(tmp_path: Path) -> None:
    folder, away = tmp_path / "folder", tmp_path / "away"
    write(str(folder), "b.jsonl", "sub/c.jsonl")
    write(str(away), "d.jsonl", "deep/e.jsonl")
    (folder / "a.jsonl").symlink_to("b.jsonl")
    (folder / "linked").symlink_to(away)
    (folder / "again").symlink_to(away / "deep")
    (folder / "loop").symlink_to(folder)
    (folder / "sub" / "up").symlink_to("..")
    (folder / "self").symlink_to("self")
    (folder / "gone.jsonl").symlink_to("nowhere")
    (folder / "round.jsonl").symlink_to("round.jsonl")
    assert found(folder) == ["again/e.jsonl", "b.jsonl", "linked/d.jsonl", "sub/c.jsonl"]
    told = left_out(folder)
    assert told == {"links to what is read already": 4, "broken links": 2, "no ending": 1}
    assert found(f"{folder}/*/*.jsonl") == ["again/e.jsonl", "linked/d.jsonl", "loop/b.jsonl", "sub/c.jsonl"]
    assert found(f"{folder}/**/*.jsonl") == ["again/e.jsonl", "b.jsonl", "linked/d.jsonl", "sub/c.jsonl"]
    assert found(f"{folder}/a.jsonl") == ["a.jsonl"]
    assert found(f"{folder}/linked") == ["d.jsonl", "deep/e.jsonl"]


def test_folders_that_link_to_each_other_are_walked_once(tmp_path: Path) -> None:
    names = [f"f{i}" for i in range(12)]
    write(str(tmp_path), *(f"{name}/x.jsonl" for name in names))
    for one, other in itertools.permutations(names, 2):
        (tmp_path / one / other).symlink_to(tmp_path / other)
    assert found(tmp_path) == sorted(f"{name}/x.jsonl" for name in names)


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    write(str(tmp_path), "a.jsonl")
    os.mkfifo(tmp_path / "pipe.jsonl")
    (tmp_path / "device.jsonl").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "s.jsonl"))
    assert found(tmp_path) == ["a.jsonl"]
    assert left_out(tmp_path) == {"not regular files": 3}
    assert left_out(tmp_path / "pipe.jsonl") == {"not regular files": 1}
    for name in ("pipe.jsonl", "device.jsonl"):
        with pytest.raises(SourceError, match=r"\.jsonl is not a regular file"):
            storage.stat_tag(str(tmp_path / name))


def test_a_name_that_is_not_utf8_is_refused(tmp_path: Path) -> None:
    (tmp_path / os.fsdecode(b"\xff.txt")).write_text("")
    assert left_out(tmp_path) == {".txt": 1}
    (tmp_path / os.fsdecode(b"\xff.jsonl")).write_text("")
    with pytest.raises(SourceError, match=r"/\\xff\.jsonl: the name is not UTF-8; rename the file"):
        found(tmp_path)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(str(tmp_path), "sub/a.jsonl")
    real: Callable = os.scandir

    def refuse(path: str) -> object:
        if path.endswith("/sub"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(SourceError, match="/sub: access denied; check its owner and mode"):
        found(tmp_path)


def test_very_deep_folders(tmp_path: Path) -> None:
    deep = tmp_path
    for _ in range(600):
        deep /= "d"
        deep.mkdir()
    (deep / "a.jsonl").write_text("")
    assert found(tmp_path) == [f"{deep.relative_to(tmp_path)}/a.jsonl"]
    with pytest.raises(SourceError, match="the path is too long"):
        storage.read_bytes(str(tmp_path / ("d" * 300)))


def test_urls_of_local_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(str(tmp_path), "a b/50%.jsonl")
    for url in (f"file://{tmp_path}/a%20b", f"file://localhost{tmp_path}/a%20b/", f"file://{tmp_path}/a b/*"):
        assert found(url) == ["50%.jsonl"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert found("a b") == found("~/a b") == found("./a b/../a b/*.jsonl") == ["50%.jsonl"]


# S3 only.


def put(s3: S3, key: str, data: bytes = b"") -> None:  # noqa: F811
    """An object of exactly this key, which may end in a slash."""
    fs, path = storage.filesystem(s3.root)
    bucket, _, prefix = path.partition("/")
    fs.call_s3("put_object", Bucket=bucket, Key=f"{prefix}/{key}", Body=data)


def test_empty_objects_that_stand_for_folders(s3: S3) -> None:  # noqa: F811
    for key in ("data.parquet/", "data.parquet", "data.parquet_$folder$", "data.parquet/sub/", "data.parquet/sub"):
        put(s3, key)
    put(s3, "data.parquet/part-0.parquet", b"0")
    put(s3, "data.parquet/sub/part-1.parquet", b"1")
    put(s3, "data.parquet/sub_$folder$")
    parts = ["part-0.parquet", "sub/part-1.parquet"]
    for source in ("data.parquet", "data.parquet/", "data.parquet/**", "data.parquet/**/*.parquet"):
        assert found(f"{s3.root}/{source}") == parts
    for source in ("*.parquet", "*", ""):
        assert found(f"{s3.root}/{source}") == [f"data.parquet/{part}" for part in parts]
        assert left_out(f"{s3.root}/{source}") == {}
    assert storage.list_files(storage.join(s3.root, "data.parquet")) == parts
    assert storage.list_files(s3.root) == [f"data.parquet/{part}" for part in parts]


def test_an_object_and_a_prefix_of_one_name(s3: S3) -> None:  # noqa: F811
    put(s3, "a.jsonl", b"object")
    put(s3, "a.jsonl/b.jsonl", b"below")
    put(s3, "empty.jsonl")
    assert found(f"{s3.root}/a.jsonl") == ["a.jsonl"]
    assert found(f"{s3.root}/a.jsonl/") == ["b.jsonl"]
    assert found(s3.root) == ["a.jsonl", "a.jsonl/b.jsonl", "empty.jsonl"]
    assert storage.list_sizes(s3.root) == {"a.jsonl": 6, "a.jsonl/b.jsonl": 5, "empty.jsonl": 0}


def test_keys_with_an_empty_name(s3: S3) -> None:  # noqa: F811
    put(s3, "a//b.jsonl", b"1")
    [file] = storage.find_tagged(f"{s3.root}/a", SUFFIXES).files
    assert file.path == "/b.jsonl"
    assert storage.read_bytes(file.url) == b"1"


def test_a_bucket_and_more_than_one_page_of_it(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    bucket = s3.root.rpartition("/")[0]
    names = [f"{i:02}.jsonl" for i in range(25)]
    write(s3.root, *names)
    fs = type(storage.filesystem(bucket)[0])
    real = fs._list_pages
    monkeypatch.setattr(fs, "_list_pages", lambda *words, **options: real(*words, **options | {"MaxKeys": 10}))
    s3.requests.clear()
    for source in (bucket, f"{bucket}/", f"{bucket}/*/*.jsonl"):
        assert found(source) == [f"root/{name}" for name in names]
    assert sum("continuation-token" in path for _, path in s3.requests) >= 6
    assert found(f"{bucket}/root/2[34].jsonl") == ["23.jsonl", "24.jsonl"]


@pytest.mark.parametrize("url", ["s3://", "s3:///x", "s3://*/x", "s3://my bucket/x", "s3a://a?b/x"])
def test_a_url_without_a_bucket(url: str, s3: S3) -> None:  # noqa: F811
    for ask in (found, storage.exists, storage.list_folders):
        with pytest.raises(SourceError, match="names no bucket: give s3://BUCKET/PATH"):
            ask(url)

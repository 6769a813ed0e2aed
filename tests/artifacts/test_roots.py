import os
from pathlib import Path

import pytest

from bitlm.artifacts.roots import check_writable
from bitlm.artifacts.store import Store
from bitlm.errors import BitLMError
from bitlm_flows.cli import main


def test_what_may_be_a_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "linked").symlink_to("elsewhere")
    (tmp_path / "elsewhere").mkdir()
    for root, url in {
        "new/folder": f"{tmp_path}/new/folder",
        "linked": f"{tmp_path}/linked",
        f"file://{tmp_path}/a%20b": f"{tmp_path}/a b",
        "s3://bucket": "s3://bucket",
        "s3://bucket/a b/": "s3://bucket/a b",
        "memory://x": "memory://x",
    }.items():
        assert Store(root).root == url
    assert sorted(os.listdir()) == ["elsewhere", "linked"]
    check_writable("new/folder")
    assert os.listdir("new/folder") == []


@pytest.mark.parametrize(
    ("root", "told"),
    [
        (
            "http://me:secret@host/x?key=1",
            r"the root http://host/x\?… cannot be written to: name a folder or the URL of",
        ),
        ("https://host/x", "cannot be written to"),
        ("hf://datasets/a/b", "cannot be written to"),
        ("hub:a/b", "the root hub:a/b cannot be written to"),
        ("nope://x", "nope://x: Protocol not known: nope"),
        ("s3://", "s3:// names no bucket"),
        ("s3://a b/x", "names no bucket"),
        ("file", r"the root .*/file cannot be a folder, since .*/file is a file: name another one"),
        ("file/a/b", r"the root .*/file/a/b cannot be a folder, since .*/file is a file: name another one"),
        ("broken/a", "cannot be a folder"),
        ("", "the root is empty"),
    ],
)
def test_what_may_not(root: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("broken").symlink_to("nowhere")
    with pytest.raises(BitLMError, match=told):
        Store(root)


def test_a_root_that_cannot_be_written_stops_a_run_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("bitlm.artifacts.roots.tempfile.TemporaryFile", refuse)
    root = tmp_path / "root"
    with pytest.raises(BitLMError, match=r"/root cannot be written to \(Permission denied\): name another one"):
        check_writable(str(root))
    with pytest.raises(BitLMError, match="memory://x lies in the memory of one process, and a run has several"):
        check_writable("memory://x")
    assert main(["plan", "corpus", "--root", str(root)]) == 0, "a plan writes nothing"
    assert main(["run", "corpus", "--root", str(root)]) == 1
    assert (
        capsys.readouterr().err
        == f"bitlm: the root {root} cannot be written to (Permission denied): name another one\n"
    )

"""Variables and folders of the machine that a command cannot use, and proxies."""

import os
import pwd
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from bitlm_flows.cli import main

LOOPBACK = textwrap.dedent("""
    import http.server, os, threading, urllib.request
    import bitlm_flows
    import httpx
    from botocore.utils import should_bypass_proxies

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for host in ("127.0.0.1", "localhost"):
        url = f"http://{host}:{server.server_port}/"
        assert httpx.get(url).status_code == 200
        assert urllib.request.urlopen(url).status == 200
        assert should_bypass_proxies(url)
    for url in ("http://example.org", "http://example.com"):
        print(should_bypass_proxies(url))
""")

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.mark.parametrize("upper", [True, False])
def test_no_request_to_this_machine_goes_by_a_proxy(tmp_path, upper):
    env = {name: value for name, value in os.environ.items() if name.lower() not in PROXIES}
    dead = {**dict.fromkeys(PROXIES, "http://127.0.0.1:9"), "no_proxy": "example.org"}
    env |= {name.upper() if upper else name: value for name, value in dead.items()}
    run = subprocess.run(
        [sys.executable, "-P", "-c", LOOPBACK], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True", "False"]  # what the user excepts, and what goes by the proxy


def _refused(capsys) -> str:
    assert main(["artifacts", "list"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    return said[0]


@pytest.mark.parametrize("proxy", ["socks://127.0.0.1:1080", "socks4://127.0.0.1:1080", "http://[::1"])
def test_a_proxy_that_cannot_be_used_is_named(monkeypatch, capsys, proxy):
    monkeypatch.setenv("ALL_PROXY", proxy)
    said = _refused(capsys)
    assert said.startswith("bitlm: ")
    assert "ALL_PROXY" in said
    assert proxy in said


def test_a_user_without_a_home_is_asked_for_one(monkeypatch, capsys):
    def none(uid: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr(pwd, "getpwuid", none)
    assert _refused(capsys).endswith("has no home: set HOME to a folder")


def test_without_a_folder_for_temporary_files_one_is_asked_for(monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: ["/dev/null/x"])
    assert "['/dev/null/x']: set TMPDIR" in _refused(capsys)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("PREFECT_API_REQUEST_TIMEOUT", "soon", "request_timeout Input should be a valid number"),
        ("PREFECT_API_URL", "http://[::1", "Invalid IPv6 URL"),
        ("PREFECT_HOME", "{folder}", "Invalid value"),
    ],
)
def test_a_setting_that_prefect_cannot_read_is_one_line(tmp_path, name, value, said):
    (tmp_path / "profiles.toml").write_text("active = [[")
    command = [str(Path(sys.executable).with_name("bitlm")), "run", "corpus", "--root", str(tmp_path)]
    env = os.environ | {name: value.format(folder=tmp_path)}
    run = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert run.stderr.splitlines()[-1].startswith("bitlm: Prefect cannot read its settings (")
    assert said in run.stderr.splitlines()[-1]
    assert "Traceback" not in run.stderr

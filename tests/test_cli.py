"""The command line's tables, JSON, options and errors; `views` is played by a module of this test."""
from __future__ import annotations

import json
import os
import subprocess
import sys
from types import ModuleType, SimpleNamespace

import pytest

import shmstack
from shmstack import cli, errors
from shmstack.options import OPTIONS


@pytest.fixture
def views(monkeypatch):
    fake = ModuleType("shmstack.views")
    alive = SimpleNamespace(pid=10, comm="server", alive=True)
    dead = SimpleNamespace(pid=11, comm="client", alive=False)
    fake.stacks = lambda: [
        SimpleNamespace(name="a", owner_uid=0, owner_name="root", created_ns=10**18, processes=[alive, dead],
                        endpoints_used=2, endpoints_max=8192),
        SimpleNamespace(name="bb", owner_uid=7, owner_name="eve", created_ns=10**18, processes=[],
                        endpoints_used=0, endpoints_max=4)]
    ends = [SimpleNamespace(stack="a", local=("127.0.0.1", 80), remote=("127.0.0.1", 40000), state="ESTABLISHED",
                            recv_q=5, send_q=0, tx_lane="ring", rx_lane="kernel"),
            SimpleNamespace(stack="bb", local=("::1", 80), remote=("::1", 40001), state="CLOSE-WAIT",
                            recv_q=0, send_q=0, tx_lane="ring", rx_lane="ring")]

    def connections(name=None):
        if name == "none":
            raise errors.StackNotFound("stack 'none'", "no such segment")
        return [end for end in ends if name in (None, end.stack)]
    fake.connections = connections
    fake.counters = lambda name=None: {"a": {"moves": 3, "not_alien": 0}}
    monkeypatch.setitem(sys.modules, "shmstack.views", fake)
    monkeypatch.setattr(shmstack, "views", fake, raising=False)
    return fake


def _lines(capsys, *words):
    assert cli.main(words) == 0
    return [line.split() for line in capsys.readouterr().out.splitlines()]


@pytest.mark.usefixtures("views")
def test_list_shows_stack_owner_and_processes(capsys):
    head, first, second = _lines(capsys, "list")
    assert head[:3] == ["stack", "owner", "uid"]
    assert first[:3] == ["a", "root", "0"]
    assert " ".join(first).endswith("2 8192 10 server, 11 client (dead)")
    assert second[:3] == ["bb", "eve", "7"]


@pytest.mark.usefixtures("views")
def test_netstat_shows_a_line_for_each_end(capsys):
    head, first, second = _lines(capsys, "netstat")
    assert head == ["stack", "local", "remote", "state", "recv-q", "send-q", "tx-lane", "rx-lane"]
    assert first == ["a", "127.0.0.1:80", "127.0.0.1:40000", "ESTABLISHED", "5", "0", "ring", "kernel"]
    assert second[1] == "[::1]:80"
    assert len(_lines(capsys, "netstat", "bb")) == 2


@pytest.mark.usefixtures("views")
def test_stats_shows_what_counted(capsys):
    assert _lines(capsys, "stats")[1:] == [["a", "moves", "3"]]


@pytest.mark.usefixtures("views")
@pytest.mark.parametrize(("view", "keys"), [
    ("list", {"stack", "owner", "uid", "created", "endpoints", "max", "processes"}),
    ("netstat", {"stack", "local", "remote", "state", "recv_q", "send_q", "tx_lane", "rx_lane"}),
    ("stats", {"stack", "counter", "value"})])
def test_json_has_the_same_columns(capsys, view, keys):
    assert cli.main([view, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(set(row) == keys for row in rows)


def test_no_stack_prints_nothing_or_an_empty_list(views, capsys):
    views.stacks = list
    assert _lines(capsys, "list") == []
    assert cli.main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []


@pytest.mark.usefixtures("views")
def test_watch_looks_again_until_interrupted(capsys, monkeypatch):
    naps = []

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            raise KeyboardInterrupt
    monkeypatch.setattr("shmstack._show.time.sleep", sleep)
    assert cli.main(["stats", "--watch", "0.5", "--json"]) == 130
    out = capsys.readouterr().out.splitlines()
    assert [json.loads(line)[0]["value"] for line in out] == [3, 3, 3]
    assert naps == [0.5] * 3


@pytest.mark.usefixtures("views")
def test_unknown_stack_is_an_error_with_its_reason(capsys):
    assert cli.main(["netstat", "none"]) == 1
    assert "wanted stack 'none', found no such segment" in capsys.readouterr().err


@pytest.mark.usefixtures("views")
def test_terminal_gets_a_table_with_text_as_it_is(capsys, monkeypatch, views):
    row = views.connections()[0]
    row.state = "[bold]odd[/bold]"
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert cli.main(["netstat"]) == 0
    assert "[bold]odd[/bold]" in capsys.readouterr().out


def test_options_lists_every_option(capsys):
    assert cli.main(["options"]) == 0
    text = capsys.readouterr().out
    assert all(f"{name}  (default" in text for name in OPTIONS)
    assert cli.main(["options", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(OPTIONS)
    assert set(rows[0]) == {"name", "default", "range", "scope", "doc"}


def test_perf_without_a_checkout_says_how_to_get_it(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "_ROOT", tmp_path)
    assert cli.main(["perf", "pingpong"]) == 1
    assert "checkout" in capsys.readouterr().err


def test_perf_gets_its_words_and_gives_the_exit_code(monkeypatch, tmp_path):
    (tmp_path / "shmstack").mkdir()
    (tmp_path / "perf").mkdir()
    (tmp_path / "perf" / "__init__.py").touch()
    (tmp_path / "perf" / "cli.py").write_text("def main(argv):\n    return len(argv)\n")
    monkeypatch.setattr(cli, "_ROOT", tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.partition(".")[0] == "perf"]:
        monkeypatch.delitem(sys.modules, name)
    assert cli.main(["perf", "pingpong", "--json", "-x"]) == 3
    for name in ("perf", "perf.cli"):
        sys.modules.pop(name, None)


def test_no_subcommand_is_usage_and_1(capsys):
    assert cli.main([]) == 1
    assert "usage: shmstack" in capsys.readouterr().err


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_closed_pipe_is_no_traceback(unbuffered):
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "shmstack", "options"], stdout=writer, stderr=subprocess.PIPE,
                          text=True, check=False, cwd="/", env={**os.environ, "PYTHONUNBUFFERED": unbuffered})
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 141


def test_views_of_this_host_answer():
    for view in ("list", "netstat", "stats"):
        done = subprocess.run([sys.executable, "-m", "shmstack", view, "--json"], capture_output=True, text=True,
                              check=True, cwd="/")
        assert isinstance(json.loads(done.stdout), list)

"""The measuring tools measure: every workload gives sane rows; no test asserts a time."""
from __future__ import annotations

import io
import json
import math
import sys
from array import array
from pathlib import Path

import pytest

# `perf` is no part of the installation; behind it, so that the installed shmstack is what is measured.
sys.path.append(str(Path(__file__).resolve().parent.parent))

from perf import cli, latency, machine, report, rows, targets
from perf.harness import Crew, Pair, WorkerFailed
from perf.rows import Options, Row
from perf.transports import CATALOGUE, PEERS, Transport

TINY = Options(rounds=1, slice_s=0.02, count=20)



@pytest.mark.parametrize("workload", cli.WORKLOADS)
def test_workload_gives_rows_with_a_figure_or_a_reason(workload: str) -> None:
    found = cli.measure([workload], TINY)
    assert found
    for row in found:
        assert row.missing or (math.isfinite(row.value) and row.value >= 0 and row.rounds), row
        if row.role in ("baseline", "ceiling"):
            assert not row.missing, row


@pytest.mark.parametrize("name", ["kernel-blocking", "kernel-spin", "unix", "mp-pipe", "ring"])
@pytest.mark.parametrize("size", [1, 64, 70_000, 3 << 20])
def test_transport_carries_every_size(name: str, size: int) -> None:
    with Crew(TINY) as crew:
        pair = Pair(CATALOGUE[name]).open(crew, "perf.pingpong")
        answer = pair.turn(case="closed", size=size, count=3)
        assert not pair.missing
    samples = rows.unpack(answer["samples"])
    assert len(samples) == 3 and min(samples) > 0 and answer["cpu_ns"] >= 0


@pytest.mark.parametrize("name", PEERS)
@pytest.mark.parametrize("size", [64, 4096])
def test_installed_peer_carries_messages(name: str, size: int) -> None:
    if reason := CATALOGUE[name].missing():
        pytest.skip(reason)
    with Crew(TINY) as crew:
        pair = Pair(CATALOGUE[name]).open(crew, "perf.pingpong")
        answer = pair.turn(case="closed", size=size, count=3)
        assert not pair.missing
    assert min(rows.unpack(answer["samples"])) > 0


@pytest.mark.parametrize("case", ["open", "asleep"])
def test_paced_cases_answer_with_as_many_samples(case: str) -> None:
    with Crew(TINY) as crew:
        pair = Pair(CATALOGUE["kernel-blocking"]).open(crew, "perf.pingpong")
        assert len(rows.unpack(pair.turn(case=case, size=64, count=7)["samples"])) == 7


def test_transport_without_its_module_says_so() -> None:
    pair = Pair(Transport("none", "none", "peer", "tcp", needs=("no_such_module",)))
    with Crew(TINY) as crew:
        assert pair.open(crew, "perf.pingpong").turn(case="closed", size=1, count=1) == {}
    assert "no_such_module" in pair.missing


def test_worker_that_raises_is_a_row_with_its_reason() -> None:
    broken = Transport("broken", "broken", "ours", "tcp", module="no_such_module")
    with Crew(TINY) as crew:
        assert "no_such_module" in Pair(broken).open(crew, "perf.pingpong").missing


def test_silent_worker_does_not_hold_up_the_run() -> None:
    with Crew(TINY) as crew:
        worker = crew.hire("perf.pingpong:server", CATALOGUE["kernel-blocking"], 0)
        worker.hear()
        with pytest.raises(WorkerFailed, match="said nothing"):
            worker.hear(timeout_s=0.1)
        worker.kill()
        with pytest.raises(WorkerFailed, match="ended"):
            worker.hear()


@pytest.mark.parametrize("exact", [True, False])
def test_percentiles_agree_with_the_sorted_samples(exact: bool) -> None:
    samples = [i * 1000 for i in range(1, 1001)]
    told = latency.Latencies(samples, exact=exact)
    for percent, naive in ((50.0, 500_000), (99.0, 990_000), (99.9, 999_000), (100.0, 1_000_000)):
        assert told.percentile(percent) == pytest.approx(naive, rel=0.002)
    assert told.max == 1_000_000
    assert [percent for percent, _ in told.curve()] == sorted(percent for percent, _ in told.curve())


def test_samples_survive_their_encoding() -> None:
    samples = array("q", [0, 1, 2**40])
    assert rows.unpack(rows.pack(samples)) == samples


def test_table_compares_with_baseline_and_ceiling() -> None:
    group = [
        Row("pingpong", "closed, 64 B", name, "us", value, p50=value, rounds=[value])
        for name, value in (("kernel-blocking", 80.0), ("shmstack", 2.0), ("ring", 1.0))
    ]
    group.append(Row("pingpong", "closed, 64 B", "unix", "us", missing="no reason"))
    out = io.StringIO()
    report.show(group, machine.describe(), out)
    text = out.getvalue()
    assert "40.0x" in text and "50%" in text and "not available: no reason" in text
    told = json.loads(report.as_json(group, machine.describe(), []))
    assert [row.get("x_baseline") for row in told["rows"]] == [1.0, 40.0, 80.0, None]


def test_targets_are_judged_by_their_rows() -> None:
    known = [
        Row("pingpong", "closed, 64 B", "kernel-blocking", "us", 80.0, p999=900.0),
        Row("pingpong", "closed, 64 B", "shmstack-spin", "us", 1.0, p999=100.0),
        Row("idle", "a blocked pair", "shmstack", "us/s", 0.0),
    ]
    verdicts = {verdict["what"]: verdict for verdict in targets.judge(known)}
    assert len(verdicts) == len(targets.TARGETS)
    assert verdicts["64 B round trip, spinning, p50"]["ratio"] == pytest.approx(0.9)
    assert not verdicts["64 B round trip, spinning, p50"]["met"]
    assert verdicts["... kernel TCP blocking / ours"]["measured"] == 80.0
    assert verdicts["CPU of a blocked pair, a second"]["met"]
    assert "has not measured" in verdicts["... kernel TCP spinning / ours"]["missing"]
    for verdict in verdicts.values():
        assert len(targets.cells(verdict)) == len(targets.HEAD)


def test_command_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["pingpong", "--quick", "--json", "--rounds", "1", "--no-pin", "--transports", "kernel-blocking,ring"]
    assert cli.main([*words, "--sizes", "1,4K"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [row["size"] for row in told["rows"]] == [1, 1, 4096, 4096]
    assert told["machine"]["cores"] >= 1


@pytest.mark.parametrize("words", [["nothing"], ["pingpong", "--sizes", "0"], ["stream", "--transports", "magic"], []])
def test_command_refuses_what_makes_no_sense(words: list[str]) -> None:
    with pytest.raises(SystemExit) as refused:
        cli.main(words)
    assert refused.value.code == 2


def test_plot_draws_distribution_and_sweep(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from perf import plot

    found = [
        Row("pingpong", "x", name, "us", size / 64, rounds=[1.0], size=size, curve=[(50.0, 1.0), (99.0, 2.0)])
        for name in ("kernel-blocking", "shmstack", "ring")
        for size in (64, 4096)
    ]
    path = plot.draw(found, machine.describe(), str(tmp_path / "picture.svg"))
    assert Path(path).read_text().count("shmstack, defaults") >= 1

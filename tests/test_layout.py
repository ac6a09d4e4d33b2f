"""The layout of shared memory: what is printed is what was agreed, and no two fields share a byte."""
from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import pytest

from shmstack.shm import layout
from shmstack.shm.layout import COUNTERS, DIRECTION, HEADER, LINES, PAGE, STRUCTS, Struct
from shmstack.tcp.handle import HANDLE

GOLDEN = Path(__file__).with_name("golden") / "layout.txt"


def test_printed_layout_equals_the_golden_one():
    """A change here needs the golden file changed with it: python -m tests.test_layout prints the new one."""
    assert layout.describe() == GOLDEN.read_text()


def test_digest_is_the_same_in_every_process_and_changes_with_any_field():
    program = "from shmstack.shm.layout import DIGEST; print(DIGEST)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env={"PYTHONHASHSEED": "77", "PYTHONPATH": str(GOLDEN.parents[2])})
    assert int(done.stdout) == layout.DIGEST
    assert 0 < layout.DIGEST < 1 << 56
    program = ("from shmstack.shm import layout\nold = layout.describe()\n"
               "layout.TCB.fields['more'] = (80, 8, 'a new field')\nprint(old == layout.describe())")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": str(GOLDEN.parents[2])})
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize("struct", [*STRUCTS, HANDLE], ids=lambda struct: struct.name)
def test_fields_are_aligned_and_apart(struct):
    fields = sorted(struct.fields.values(), key=lambda field: field[0])
    for at, width, _ in fields:
        assert at % 8 == 0 and width % 8 == 0 and at + width <= struct.size
    for (at, width, _), (following, _, _) in itertools.pairwise(fields):
        assert at + width <= following
    assert struct.size % 8 == 0


@pytest.mark.parametrize("struct", STRUCTS, ids=lambda struct: struct.name)
def test_numpy_sees_the_same_offsets(struct):
    pytest.importorskip("numpy")
    assert struct.dtype.itemsize == struct.size
    assert {name: place[1] for name, place in struct.dtype.fields.items()} == struct.at._asdict()


def test_words_of_different_writers_stand_on_different_lines():
    at = DIRECTION.at
    groups = [[at.tail], [at.head], [at.bell, at.passed], [at.nb, at.fin, at.bound0, at.bound3], [at.tx_lock, at.head_cache],
              [at.rx_lock]]
    lines = [{place // LINES for place in group} for group in groups]
    assert all(len(line) == 1 for line in lines)
    assert len(set.union(*lines)) == len(groups)


@pytest.mark.parametrize(("pairs", "capacity"), [(2, 1 << 14), (4096, 1 << 18), (1 << 20, 1 << 14), (3, 1 << 26)])
def test_parts_of_a_segment_follow_each_other(pairs, capacity):
    pairs_at, rings, size = layout.geometry(pairs, capacity)
    assert HEADER.size <= layout.PROCESSES
    assert layout.WAITERS + layout.WAITERS_MAX * layout.waiter_size(pairs) <= pairs_at
    assert pairs_at % PAGE == rings % PAGE == 0
    assert pairs_at + pairs * layout.PAIR_SIZE <= rings
    assert rings + 2 * pairs * capacity == size


def test_counters_fit_and_have_one_name_each():
    assert 8 * len(COUNTERS) <= HEADER.fields["counters"][1]
    assert len(set(COUNTERS)) == len(COUNTERS)


def test_fields_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="Small: fields take 16 bytes, size=8"):
        Struct("Small", {"a": "", "b": ""}, size=8)


if __name__ == "__main__":
    print(layout.describe(), end="")

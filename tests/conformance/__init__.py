"""One suite, two faces: what the standard library's sockets do, ours must do.

Every test runs on the standard library first (the referee: its expectations are the kernel's) and then
on shmstack. The core tests of streams and of closing run three times more often than that: with both ends in one
process, and with either end in another process (see `remote`). No test asks which face it has, except to
assert that the connection it used was accelerated.
"""

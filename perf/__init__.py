"""How fast shmstack is, measured on your machine: `shmstack perf <workload>` or `python -m perf`.

Every workload runs the same ordinary code over several *transports*: its **baseline** (kernel
TCP and what else Python offers), its **peers** (other libraries, where installed), shmstack, and
a **ceiling** (the least that any Python on shared memory could take).  All run in interleaved
rounds, so that a noisy second of the machine hits all of them alike, and a ratio means something
where an absolute figure does not.

How to read the code, bottom row first; a module imports only rows below its own:

    cli, __main__                     arguments, progress, output
    targets, plot, report             rows -> verdicts, pictures, tables
    pingpong stream connect ...       one workload each: a drawing, what each process does, `run()`
    harness                           processes, rounds, pinning, medians
    transports                        the catalogue: what can be measured, and what it needs
    ends, peers                       make the two ends of a transport, inside worker processes
    bare, ceilings, channels          one end: how it asks and echoes, pours and drains
    latency, machine, worker          percentiles, the machine line, the life of a worker
"""

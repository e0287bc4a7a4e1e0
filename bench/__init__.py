"""The stores that a Python user would pick instead, and this one, measured side by side in one run.

    make bench                                                      # all of it, under 10 minutes
    python -m bench --only workers-16 --peers redis                 # one workload alone, one peer
    python -m bench --only pipelined --only batches --rounds 3 --seconds 0.5
    python -m bench --help                                          # the names of all workloads

Needs the extra `bench` (client libraries, matplotlib). Servers are taken from the system; what is
not installed is left out by name. Compare ratios within one run; figures of two runs differ with
whatever else the machine was doing.

    __main__.py    the command: which workloads, in which order, what is told meanwhile
    workloads.py   the table of all workloads; those in which crews of workers are compared
    alone.py       those that concern ckptmesh alone: growth, compaction, starts, memory
    fanout.py      watchers
    floor.py       what the machine gives at most: syncs, round trips
    context.py     what every workload is given
    data.py        stores with a million keys, made in seconds
    mesh.py        ckptmesh's processes and workers
    peers.py       one worker class a peer
    servers.py     real servers on loopback, in one temporary folder
    proc.py        processor time and memory of a process
    figures.py     series of rounds, medians, ratios
    targets.py     what is to be reached
    report.py      table, JSON, plot, the page in docs/
"""

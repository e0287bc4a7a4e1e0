"""What a user would copy: a producer, a pipeline, a second one that follows it, and a monitor.

    python -m demo.producer      appends records to a log file
    python -m demo.pipeline      adds them up in SQLite, and keeps its place in ckptmesh
    python -m demo.downstream    goes on from there, whenever the pipeline has committed
    python -m demo.monitor       shows every commit as it is published

Start `ckptmesh up` in one terminal and each of these in another; kill any of them as you like.
`ckptmesh demo` does all that by itself, with SIGKILL at random moments, and counts.

`demo/nightly.sh` is a job for cron, in shell: `ckptmesh exec` gives it a lock and its place.

    python -m demo.etl orders.csv totals.db --make 10000     three stages, a file, SQLite
    python -m demo.etl orders.csv totals.db --crash load     the same, with a SIGKILL of itself

`demo/naive.py` is the pipeline that most people would write first, and is wrong.
"""

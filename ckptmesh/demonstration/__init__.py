"""What `ckptmesh demo` does: a real cluster, killed at random, and a judge who counts again.

    cluster.py   the processes: start, watch, kill, start again, end
    run.py       the course of the demo: when what is killed, when it is done
    judge.py     counts the input again and compares; knows neither the store nor the pipelines
    child.py     lets a module of `demo/` end with the demo

The pipelines themselves are in the package `demo`, made to be read and copied.
"""

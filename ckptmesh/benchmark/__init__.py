"""What `ckptmesh bench` does: load by real processes, and the limits of the machine beside it.

`driver.py` runs any work in any number of processes at once, and counts what was done.
"""

"""What `ckptmesh certify` does: tries out a place before anything of value is kept there.

`place.py` looks at the file system and measures its syncs; `kills.py` has processes commit, kills
them and counts; `damage.py` cuts a log at every frame and flips bits in it; `run.py` puts these
together and judges. `nursery.py` and `worker.py` are the two ends of the processes that are killed.

What must be found is told by `model.py`, which knows each commit by its number alone.
"""

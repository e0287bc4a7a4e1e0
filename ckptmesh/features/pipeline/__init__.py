"""Staged pipelines: runs that go on where they stopped.

    places.py       where everything about a run is kept
    records.py      the record of a run: what it holds, its schema, upgrades
    runs.py         reading records, asking for a pause or an end, statistics, cleaning up
    definition.py   stages, as decorators and as data; what has changed between two definitions
    digests.py      what makes a stage run again
    plan.py         what is left to do of a run; asks no store
    storage.py      outputs by reference: files, written durably and verified when read
    outputs.py      outputs in the store
    ledger.py       the record while a run is being done: every commit of it
    handles.py      what a stage function is given
    executing.py    one run, as a flow
    ways.py         how threads and tasks wait, look around and call stages
    pipelines.py    what users declare and run

Whoever only reads runs needs `records.py` and `runs.py`.
"""

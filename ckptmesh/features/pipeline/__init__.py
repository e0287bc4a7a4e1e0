"""Staged pipelines: runs that go on where they stopped.

    places.py       where everything about a run is kept
    records.py      the record of a run: what it holds, its schema, upgrades
    runs.py         reading records, asking for a pause or an end, statistics, cleaning up
    definition.py   stages, as decorators and as data; what has changed between two definitions
    digests.py      what makes a stage run again
    storage.py      outputs by reference: files, written durably and verified when read
    executing.py    one run, as a flow
    handles.py      what a stage function is given
"""

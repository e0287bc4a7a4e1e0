"""Looking into checkpoints and runs: one in full, figures, a picture, what is suspicious.

Rule 1: nothing here writes.
Rule 2: what cannot be read is told, and stops nothing: these are tools for stores that are broken.
Rule 3: a store is read by the page; what is kept of it in memory is bounded (`limits.DEBUG_…`).
"""

"""Hostile bytes against every reader: targets, the committed corpus, and its replay."""

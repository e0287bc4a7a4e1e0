"""The release of this package, in one place."""

RELEASE = "0.1.0"

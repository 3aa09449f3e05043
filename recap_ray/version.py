"""The version of this package, which run.json keeps."""

__version__ = "0.1.0"

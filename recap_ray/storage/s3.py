"""Paths of S3 that ask again, for about a minute, where the store and not the request is at fault."""

from __future__ import annotations

import logging
from functools import cache
from typing import Any

import s3fs
import s3fs.core
from botocore.exceptions import ConnectionError as NoConnection
from upath.implementations.cloud import S3Path
from upath.registry import register_implementation

# s3fs waits 0.1 s, then 1.7 times as long each time, 15 s at most.
REQUESTS = 13


class PatientS3Path(S3Path):
    """As universal_pathlib's; a worker that unpickles one has its patience too."""

    @property
    def fs(self) -> Any:
        """The file system."""
        _be_patient()
        return super().fs


for _protocol in ("s3", "s3a"):
    register_implementation(_protocol, PatientS3Path, clobber=True)


@cache
def _be_patient() -> None:
    s3fs.S3FileSystem.retries = REQUESTS
    s3fs.core.set_custom_error_handler(_is_the_stores_fault)
    logging.getLogger("botocore").setLevel(logging.WARNING)  # its debug lines hold signatures


def _is_the_stores_fault(error: Exception) -> bool:
    answer = getattr(error, "response", None) or {}
    return isinstance(error, NoConnection) or answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500

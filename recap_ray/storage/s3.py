"""S3 paths that retry for about a minute after errors of the store, not of the request."""

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


class RetryingS3Path(S3Path):
    """A universal_pathlib S3Path that retries; unpickling one in a worker enables the retries there."""

    @property
    def fs(self) -> Any:
        """Return the file system, with retries enabled."""
        _configure_retries()
        return super().fs


for _protocol in ("s3", "s3a"):
    register_implementation(_protocol, RetryingS3Path, clobber=True)


@cache
def _configure_retries() -> None:
    s3fs.S3FileSystem.retries = REQUESTS
    s3fs.core.set_custom_error_handler(_is_store_error)
    logging.getLogger("botocore").setLevel(logging.WARNING)  # its debug lines hold signatures


def _is_store_error(error: Exception) -> bool:
    response = getattr(error, "response", None) or {}
    return isinstance(error, NoConnection) or response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) >= 500

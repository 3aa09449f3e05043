"""The output row: its columns, its error codes, and the names of the files of a run."""

from __future__ import annotations

import pyarrow as pa

# One row for each input image, never more, never fewer: it has a caption or an error.
CAPTION_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),  # unique in a run: the path below the image folder
        pa.field("source", pa.string(), nullable=False),  # the file the image was read from
        pa.field("caption", pa.string()),
        pa.field("clip_score", pa.float32()),  # CLIP-S, 2.5 * max(cos, 0)
        pa.field("aligned_clip_score", pa.float32()),  # aCLIP-S, max(cos with the aligned image, 0)
        pa.field("candidates", pa.list_(pa.string())),
        pa.field("candidate_scores", pa.list_(pa.float32())),  # aligned cosine of each candidate
        pa.field("neighbours", pa.list_(pa.string())),
        pa.field("neighbour_ids", pa.list_(pa.int64())),
        pa.field("neighbour_scores", pa.list_(pa.float32())),  # aligned cosine of each neighbour
        pa.field("width", pa.int32()),  # pixels, upright
        pa.field("height", pa.int32()),
        pa.field("original_caption", pa.string()),
        pa.field("error", pa.string()),  # "code: message"
    ]
)

# The columns that a captioner fills, one entry an image. Without retrieval the lists of neighbours are empty; an image
# without a caption has an `error`.
CAPTIONER_COLUMNS = (
    "caption",
    "clip_score",
    "aligned_clip_score",
    "candidates",
    "candidate_scores",
    "neighbours",
    "neighbour_ids",
    "neighbour_scores",
    "error",
)

# The possible error codes. Reports count by code, so a code never changes its meaning.
ERROR_CODES = {
    "unreadable": "the bytes could not be read from the store",
    "empty": "the file holds no bytes",
    "too_many_bytes": "the file is larger than --max-image-bytes",
    "too_many_pixels": "the image has more pixels than --max-image-pixels",
    "not_an_image": "the bytes are of no known image format",
    "truncated": "the image ends before its last pixel, or its data is damaged",
    "no_image": "a tar's key or a table's row comes without an image",
    "damaged_input": "from here on a tar or Parquet file cannot be read",
    "decoder_crashed": "decoding ended the process it was done in",
    "decoder_hung": "decoding took longer than a minute",
    "no_caption": "the captioner wrote nothing but blanks",
}

# Stored in Parquet footers and run.json; a different fingerprint in the same folder is another run.
FINGERPRINT_KEY = b"recap_ray.fingerprint"

# The footer of a pack also lists its parts, as JSON in the order of its row groups.
PARTS_KEY = b"recap_ray.parts"


def error_code(error: str) -> str:
    """Return the code of a row's error: "truncated: ends at row 12" -> "truncated"."""
    return error.split(":", 1)[0]

"""Pairs embedded in this process, for the tests of the pipelines that spread it."""

from pathlib import Path

import numpy as np

from recap_ray.alignment import EmbeddedPairs
from recap_ray.images.decode import decode_pixels
from recap_ray.images.resize import ImagePreparer
from recap_ray.models.clip import ClipCard, ClipEncoder
from recap_ray.tables.captions import read_pairs


def embed_in_one_go(path, clip: ClipEncoder) -> EmbeddedPairs:
    pairs = read_pairs(str(path))
    preparer = ImagePreparer.from_preprocess_cfg(ClipCard.of("tiny").preprocess)
    files = [Path(path).parent / image for image in pairs["image"].to_pylist()]
    pictures = [decode_pixels(file.read_bytes(), min_side=preparer.min_side) for file in files]
    images = clip.encode_images(np.stack([preparer(picture) for picture in pictures]))
    captions = pairs["captions"].to_pylist()
    owner = np.repeat(np.arange(len(images)), [len(row) for row in captions])
    return EmbeddedPairs(images, clip.encode_texts([text for row in captions for text in row]), owner)

"""What --images names: files, webdataset tars or Parquet files -> rows of a manifest -> the bytes of each image.

finding.py      which of the three it is, and which files; one listing
files.py        image files: listed lazily in the order of their keys
tars.py         webdataset tars: indexed once, then read by position
parquets.py     Parquet files of images or of paths: the same
reading.py      rows of a manifest -> bytes and the caption that came with them, in order

A row of a manifest (PLAN_SCHEMA) says where an image is by its `source`, which stands in the output too: the path of a
file, `TAR#bytes=START+SIZE`, or `FILE.parquet#row=NUMBER&column=NAME`.

No torch.
"""

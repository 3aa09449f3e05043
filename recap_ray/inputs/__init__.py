"""What --images names: files, webdataset tars or Parquet files -> rows of a manifest -> the bytes of each image.

finding.py      determines which of the three it is, and lists the files once
files.py        image files: listed lazily in the order of their keys
tars.py         webdataset tars: indexed once, then read by position
parquets.py     Parquet files of images or of paths: indexed once, then read by row number
reading.py      rows of a manifest -> bytes and the original caption, in order

A row of a manifest (MANIFEST_SCHEMA) locates an image by its `source`, which is also a column of the output: the path
of a file, `TAR#bytes=START+SIZE`, or `FILE.parquet#row=NUMBER&column=NAME`.

No torch.
"""

"""Training of decoders: examples read back from Parquet, batches that follow from a seed, the loop over them."""

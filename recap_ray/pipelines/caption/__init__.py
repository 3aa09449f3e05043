"""Caption every image: parts -> pixels -> captions -> one Parquet file a part."""

"""The datastore of captions and their embeddings: FAISS shards, searched together."""

"""Tables of users: captions, pairs, embeddings, judgements. No torch."""

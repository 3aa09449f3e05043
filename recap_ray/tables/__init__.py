"""Tables that users bring: captions, pairs, embeddings, judgements. No torch."""

"""Images: bytes -> pixels at the model's size. No torch."""

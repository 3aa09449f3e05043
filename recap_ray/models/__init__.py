"""The neural models: CLIP and the language model. They know tensors and text, but no image files, parts or Ray."""

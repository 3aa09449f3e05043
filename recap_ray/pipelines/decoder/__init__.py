"""Train a decoder, or import a published one."""

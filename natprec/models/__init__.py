"""A model of any family, from hub, folder or GGUF file, in memory or on disk until a block's turn comes."""

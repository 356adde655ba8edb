"""One measurement on many processes."""

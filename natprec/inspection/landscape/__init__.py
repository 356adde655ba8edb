"""`natprec landscape`: bits by depth in encoder, transformer and decoder, the claim (T19) beside the measurement."""

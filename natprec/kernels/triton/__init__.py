"""The Triton kernel for CUDA: W2 to W8, A16 or A8, with the epilogue inside.

Importing this package, and `ops`, needs neither triton nor a GPU. `kernel` imports triton.
"""

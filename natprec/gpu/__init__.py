"""What measuring and rounding launch on a GPU as one operation each, beside what torch has.

Importing this package needs neither triton nor a GPU; the files called `…_kernel` import triton.
"""

"""The commands of `natprec`, a file each: options in, a table or JSON out."""

"""`python -m natprec` is the command line."""

from natprec.cli import main

main()

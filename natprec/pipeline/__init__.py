"""A run: what was asked for, its tokens, what it keeps for a later run, what it will take and what it gave."""

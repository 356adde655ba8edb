"""The panels of a report, in the order of the page. Each takes the data block and gives HTML."""

"""From a checkpoint to a page that others can check: its card, and the repository on the Hub."""

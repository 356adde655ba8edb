"""`natprec report`: what the files beside a checkpoint say, as one HTML page that needs no network and no server."""

"""How long matrix products take on the machine at hand: the tables of `natprec costs`."""

"""`natprec inspect`: the information of a model, site by site and boundary by boundary."""

"""Numbers that the service goes by, too: it has them without torch."""

MAX_ITER = 500  # of a fit that was told of none, as is this:
TOL = 1e-4
EPOCHS = 3  # of an online fit that was told of none
NEAR_DENSE_SHARE = 0.9  # of the rows: a concept that is active in more tells little about any of them
NEIGHBOURS = 10  # of a concept, that are told

"""Constants that the service needs, too, without torch."""

MAX_ITER = 500  # iterations of a fit, by default
TOL = 1e-4  # of a fit, by default; see `core.nmf.NMF`
EPOCHS = 3  # of an online fit, by default
NEAR_DENSE_SHARE = 0.9  # of the rows: a concept that is active in more tells little about any of them
NEIGHBOURS = 10  # the nearest concepts that are told of each

"""Crashes at random moments, under load, and whether every promise was kept.

``python -m tests.faults.crash --kills 200 --seed 1`` runs clients that fit, encode, decode, import, label, delete and
cancel, kills the worker, the service, or both, and starts them again; with ``--postgres`` the jobs' database crashes,
and it and the service stand still, too. Each client writes down what it asked and what it was answered; after the
last start that record is compared with what the service tells and what lies on the disk.

    log      what was asked and answered, one file a client
    clients  the load
    service  the service as its victim: started, killed, looked at from outside
    answers  what the logs must be like
    disk     what the store's files and the jobs' database must be like
    run      all of it together
"""

"""The worker: the process that owns a device and does all the arithmetic. The HTTP process imports only
``messages``, ``frames`` and ``launch`` from here: what computes imports torch."""

"""The worker: the process that owns a device and does all the arithmetic. The HTTP process imports only
``messages`` and ``frames`` from here; the others import torch."""

"""Fits as jobs: their durable records, the queue, and who runs which. Above the store, and below HTTP."""

"""The commands of ``dictserve``, a file for each noun. Each imports what it needs when it runs: listing dictionaries
loads neither the web framework nor torch."""

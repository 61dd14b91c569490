"""The main job on real data, end to end: ``make demo``."""

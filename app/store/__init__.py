"""What lies in the store: versions of dictionaries, activations of fits and checkpoints, as files or as objects."""

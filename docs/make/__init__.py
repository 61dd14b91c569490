"""What makes the parts of docs/ that are not written by hand."""

"""Figures that the documents quote, each made by a command: ``make bench`` runs all of them."""

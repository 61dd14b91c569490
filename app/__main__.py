"""``python -m app`` is ``dictserve``."""

from app.cli import main

main()

"""The page at ``/``: static files, served by ``app.routes.pages``. docs/page.md tells what it shows."""

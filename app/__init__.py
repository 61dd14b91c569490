"""The service: HTTP in, frames to the worker, files in the store. Imports ``core``; never the reverse."""

from importlib.metadata import version

__version__ = version("dictserve")

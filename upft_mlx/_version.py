"""The version; nothing is imported here, so that everything can import it."""

__version__ = "0.1.0"

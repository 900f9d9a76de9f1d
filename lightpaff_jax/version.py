"""The version of the package. It imports nothing, so that setup.py can read it."""

__version__ = '0.1.0'

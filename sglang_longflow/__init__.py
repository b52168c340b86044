"""A fixed KV budget per request inside SGLang. Importing this package has no effect."""

__version__ = "0.1.0"

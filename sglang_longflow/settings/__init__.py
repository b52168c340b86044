"""Flags, the typed configuration, and what is refused with a budget."""

"""The nodes' category in the host's menu, and what finds them in its search."""

CATEGORY = "paint by example"
"""Translated in `locales/*/main.json`."""

SEARCHES = ("paint by example", "reference", "replace object", "insert object", "exemplar")
"""Search aliases that every node of the pack has."""

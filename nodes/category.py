"""The nodes' category in the host's menu."""

CATEGORY = "paint by example"
"""Translated in `locales/*/main.json`."""

"""Merging into the base: exact, all or nothing, reversible."""

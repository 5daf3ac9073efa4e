"""Probes, gates, and what to do where a gate refuses."""

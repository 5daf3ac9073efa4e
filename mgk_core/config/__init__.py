"""From TOML to a checked pipeline."""

"""The conformance kit: what a plugin's author imports to prove the plugin right."""

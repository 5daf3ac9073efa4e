"""The shipped pipelines and phases. They name plugins by type and import none."""

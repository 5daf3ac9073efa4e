"""An HTML report of a run, in one file: what was gained, what was lost, and how it is known."""

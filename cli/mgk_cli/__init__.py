"""The command line of mgk: one command a file, drawing and wording only."""

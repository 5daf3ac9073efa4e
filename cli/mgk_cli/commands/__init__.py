"""The commands: one per module, named like the module and imported when it is called."""

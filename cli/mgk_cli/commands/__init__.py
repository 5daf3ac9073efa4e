"""The commands. Each module holds one, named as the module is, and is imported when it is asked for."""

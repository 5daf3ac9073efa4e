"""``mgk serve``: a run's model behind OpenAI's chat protocol, for trying it on this machine."""

"""What a run writes, and how nothing of it is lost: files, journal, ledger, metrics, checkpoints, events."""

"""Working on a torch model: choosing and wrapping modules, low-rank deltas, statistics, digests, devices."""

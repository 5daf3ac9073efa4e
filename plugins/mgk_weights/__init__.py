"""Training a base's own weights: whole modules (``full``), or chosen rows of its token table (``rows``)."""

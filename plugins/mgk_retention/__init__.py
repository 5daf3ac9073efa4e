"""Ways of not forgetting: loss terms, merges, initialisations, and what they remember."""

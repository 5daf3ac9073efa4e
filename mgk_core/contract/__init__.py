"""What plugins promise and what they get: hooks, specifications, adapters, bundles, contexts, outcomes, errors."""

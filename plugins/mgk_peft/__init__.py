"""Any adapter of the PEFT library whose layers can merge, as a phase's adapter."""

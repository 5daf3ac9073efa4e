"""Several adapters in one phase, and adapters loaded from earlier runs or from PEFT."""

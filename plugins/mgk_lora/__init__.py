"""LoRA and its variants: rsLoRA, DoRA, PiSSA; on what models are made of."""

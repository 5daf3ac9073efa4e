"""VeRA for mgk: ΔW = Λ_b B Λ_d A with shared frozen random A, B and trained vectors d, b."""

"""What a phase minimises: likelihood, preference losses, distillation."""

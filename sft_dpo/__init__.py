"""What makes the starting policy: supervised fine-tuning first."""

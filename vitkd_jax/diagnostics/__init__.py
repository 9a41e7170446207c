"""What the maps and logits of models look like, as numbers."""

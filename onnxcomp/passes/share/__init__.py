"""Parameter sharing: equal tensors once, codebooks, low rank."""

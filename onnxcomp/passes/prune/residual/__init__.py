"""Residual branches and layers: where they are, and what the outputs miss without them."""

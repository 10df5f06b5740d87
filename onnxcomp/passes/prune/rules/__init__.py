"""What each operator says about the axes of its tensors."""

"""Make good what a cut takes from the outputs, without training."""

"""onnxcomp beside other tools, each in an environment of its own (`scripts/compare_peers.py`)."""

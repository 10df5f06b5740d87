"""Distillation: a student, an ONNX graph or a torch module, learns from a teacher that ONNX Runtime runs."""

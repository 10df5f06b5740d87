"""Reference torch models, each with `build()`, `data()` and `train()`; installed as `onnxcomp_models`."""

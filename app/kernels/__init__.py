"""The engine's inner loops: plain PyTorch references today, Triton kernels beside them later."""

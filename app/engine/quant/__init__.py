"""Quantized checkpoints as found on the Hugging Face hub, read into the forms of app.kernels.packed."""

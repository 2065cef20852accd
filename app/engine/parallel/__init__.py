"""One model on several ranks: tensor and pipeline parallelism (docs/parallel.md)."""

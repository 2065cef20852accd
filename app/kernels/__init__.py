"""The engine's inner loops: plain PyTorch references, Triton kernels beside them, and the choice between the two.

reference, plan: the CPU path. Each of paged_attention, merge_lse, store_kv, rms_norm, rejection: a Triton kernel, its
launcher, its reference, its variants. tasks, shared_prefix, paged_plan: a step's attention as data. dispatch, tuning:
what runs where. Only the kernel files and launch import triton.
"""

"""Kernels for dense attention by name; none of them is loaded here, nor is torch."""

TORCHS = "sdpa"  # as torch chooses
# torch's own, by its name in `torch.nn.attention.SDPBackend`.
SDPA = {
    "sdpa-flash": "FLASH_ATTENTION",
    "sdpa-cudnn": "CUDNN_ATTENTION",
    "sdpa-efficient": "EFFICIENT_ATTENTION",
    "sdpa-math": "MATH",
}
# Other projects' kernels: module and function, which all take [batch, tokens, heads, head_dim].
PACKAGES = {
    "fa2": ("flash_attn", "flash_attn_func"),
    "fa3": ("flash_attn_interface", "flash_attn_func"),
    "fa4": ("flash_attn.cute", "flash_attn_func"),
    "sage": ("sageattention", "sageattn"),
}
KERNELS = (TORCHS, *SDPA, "flex", *PACKAGES)
# torch compiles flex for CPUs, too, in minutes, and says of the others only that no kernel was found.
ON_CUDA = frozenset({"sdpa-cudnn", "sdpa-efficient", "flex"})
ROUNDS = frozenset({"sage"})  # to 8 bits: no yardstick, but comparable

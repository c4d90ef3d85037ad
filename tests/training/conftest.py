"""JAX compiles every little test program: let it do so cheaply, for up to eight devices that the host stands for.

Set before jax is imported; children inherit it.
"""

import os

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_use_fusion_emitters=false",  # with them XLA takes twice the time
        "--xla_force_host_platform_device_count=8",
    ]
).strip()

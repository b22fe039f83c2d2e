"""The benchmark of the GPU: kernels against the memory, engines against other libraries, what a call costs the host."""

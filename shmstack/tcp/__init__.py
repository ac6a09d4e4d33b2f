"""The engine: what an accelerated connection does, as kernels over two directions and a lifeline."""

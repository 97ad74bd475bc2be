"""What we run once: one module per job, Ray and DeepSpeed at the edge."""

"""The benchmarks' charts. They are drawn from a benchmark's JSON alone; matplotlib is needed here and nowhere else."""

"""Search: samplers, the planner, the cluster, a study on disk. The only package that imports Ray."""

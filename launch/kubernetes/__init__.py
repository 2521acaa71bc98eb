"""A Kubernetes job for mpi-operator, and what checks it without a cluster."""

"""Data, not code: the Dockerfile, the matrix of tags, the Compose files and the Kubernetes base."""

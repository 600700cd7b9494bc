"""What a cluster is: typed, frozen resources in Kubernetes' shape, their decoding and validation."""

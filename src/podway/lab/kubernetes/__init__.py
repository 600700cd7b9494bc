"""A whole Kubernetes in a lab: control plane, container runtimes and kubelets as processes in its namespaces."""

"""Podway as objects of a Kubernetes cluster: what they are (`objects`), whether they can be there (`preflight`),
how they come and change (`install`) and go (`uninstall`), and how they are (`rollout`, `status`)."""

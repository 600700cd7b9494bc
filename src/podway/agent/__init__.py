"""The daemon of a node: it joins the store, the plan, the kernel, BIRD and the CNI plugin."""

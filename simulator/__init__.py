"""A deterministic cluster of known cost, which answers as OpenCost, Kubecost and a Prometheus target."""

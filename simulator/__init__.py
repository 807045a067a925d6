"""A deterministic cluster whose exact cost is known, and which answers as OpenCost, Kubecost and a Prometheus target."""

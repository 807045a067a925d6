"""The tenant's agent: asks its Kubecost or OpenCost what is wanted, and pushes the answers."""

"""Training of IP-Adapters on a frozen base model; the nodes need none of it (its requirements: training/requirements.txt)."""

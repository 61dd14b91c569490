"""What the cases about the service work with: servers as processes (servers.py), how each is asked (ways.py), and
the load (client.py). peers/ holds what our service is compared with, the same `core.Dictionary` behind each."""

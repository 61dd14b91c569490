"""HTTP itself, whatever the route: the wire, bodies, headers, access, and what is counted of every request."""

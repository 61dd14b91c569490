"""The service under load for longer than the tests have time: ``python -m tests.faults.load trickle|saturate|soak``.

trickle.py holds hundreds of slow connections open, saturate.py asks for more than is solved, soak.py goes on for so
many requests that a leak would show. Each checks every answer (clients.py), looks at what both processes hold
(held.py), and tells figures with their goals, which `make slow`, `make load` and `make soak` write to
benchmarks/trust.json and to docs/performance.md (report.py). test_load.py runs short ones.
"""

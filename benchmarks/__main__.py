"""``make bench``: every benchmark, one after another."""

from benchmarks import during_a_fit

for benchmark in (during_a_fit,):
    print(f"\n== {benchmark.__name__}: {(benchmark.__doc__ or '').splitlines()[0]}", flush=True)
    benchmark.main()

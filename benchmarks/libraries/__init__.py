"""The libraries that are compared, each behind the same two functions.

    fit(A, nb_concepts, **settings) -> (Z, D)
    encoder(D, **settings) -> encode, where encode(A) -> Z

Arrays are numpy's, float32. Whatever can be made once per dictionary is made by `encoder`, which is not timed.
Settings are the library's own, and its defaults apply. An adapter is only ever imported in a child process.
"""

# name of a library -> (module of its adapter, its distribution on PyPI)
LIBRARIES = {
    "dictserve": ("benchmarks.libraries.dictserve", "dictserve"),
    "scikit-learn": ("benchmarks.libraries.scikit_learn", "scikit-learn"),
    "overcomplete": ("benchmarks.libraries.overcomplete", "overcomplete"),
    "torchnmf": ("benchmarks.libraries.torchnmf", "torchnmf"),
    "nmf-torch": ("benchmarks.libraries.nmf_torch", "nmf-torch"),
}
OURS = "dictserve"

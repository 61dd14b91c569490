"""Every error that `core` raises on purpose.

    CoreError
    ├── InvalidArray (ValueError)          an array that cannot be computed with
    │   ├── WrongShape                     rank, width or emptiness
    │   ├── WrongDtype                     not an array of real numbers
    │   ├── NotFinite                      NaN or infinity
    │   ├── NegativeValues                 below zero where only non-negative values make sense
    │   └── OutOfRange                     too large or too small for the dtype computed in
    ├── InvalidParameter (ValueError)      a parameter outside its range
    ├── UnknownSolver (ValueError, AssertionError)
    ├── RankLost (RuntimeError)            another process of the fit has ended
    ├── DeviceTooSmall (MemoryError)       a fit that the device has no memory for
    └── NotFitted (ValueError, AttributeError)  the model has no dictionary yet

Each message says which value was wrong, where it first was and what would be right, and never holds the array
itself. Nothing heavy is imported here: a process that does no arithmetic can still catch these.
"""


class CoreError(Exception):
    """Base of all errors of this package."""


class InvalidArray(CoreError, ValueError):
    """An array that cannot be computed with; the subclass says why."""


class WrongShape(InvalidArray):
    """The array's rank, width or emptiness does not fit."""


class WrongDtype(InvalidArray):
    """The array does not hold real numbers."""


class NotFinite(InvalidArray):
    """The array holds NaN or infinity."""


class NegativeValues(InvalidArray):
    """The array holds values below zero."""


class OutOfRange(InvalidArray):
    """The array's values, or the result's, have a magnitude that the dtype computed in cannot hold."""


class InvalidParameter(CoreError, ValueError):
    """A parameter outside its range."""


class UnknownSolver(CoreError, ValueError, AssertionError):
    """No solver has this name. Callers of similar libraries catch either of the built-in errors."""


class RankLost(CoreError, RuntimeError):
    """Another rank of a fit over several processes has ended, or does not answer any more."""


class DeviceTooSmall(CoreError, MemoryError):
    """The device has too little free memory for this fit; said before any work is done."""


class NotFitted(CoreError, ValueError, AttributeError):
    """The model was asked for something that needs a fitted dictionary.

    As with scikit-learn's error, what a fit would set is then no attribute: `hasattr` says so.
    """

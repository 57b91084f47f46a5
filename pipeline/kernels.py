"""How the inner loops are compiled: Numba turns a plain loop over records into machine code.

A loop that reads like the rule it implements is exact in any batching and has no slow case, which the
vectorised form of the same rules has (docs/decisions/0001-kernels.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar, cast, overload

import numba

Row: TypeAlias = Any
"""One record of ``PartitionState.rows``; its fields stand in ``series.Layout.of``."""

F = TypeVar("F", bound=Callable[..., object])


@overload
def kernel(function: F) -> F: ...
@overload
def kernel(*, reassociate: bool) -> Callable[[F], F]: ...
def kernel(function: F | None = None, *, reassociate: bool = False) -> F | Callable[[F], F]:
    """Compile on first use and keep the machine code beside the source for the next process.

    Kernels make no arrays of their own, copy array to array in loops, and work only on those they are given:
    without Numba's runtime (``_nrt``) no view of an array is counted, and counting them took five sixths of
    the time of alignment. A kernel that would need the runtime does not compile. Kernels are inlined where
    others call them: a call hands over all the arrays of its arguments, up to 2 KB, which took half of what
    was left. Where sums may be ``reassociate``d they take many values at once, and rounding depends on the
    machine; a division by zero gives infinity there, because no loop that checks for it takes many at once.
    """
    compiled = numba.njit(  # type: ignore[call-overload] # not in its types
        cache=True,
        nogil=True,
        forceinline=True,
        _nrt=False,
        fastmath={"reassoc", "contract", "nsz"} if reassociate else False,
        error_model="numpy" if reassociate else "python",
    )
    return cast("F", compiled(function)) if function else cast("Callable[[F], F]", compiled)

"""The errors of the model room.

`code` is stable: it crosses the wire, is counted, and may be matched on. The text says
what failed, which value, and what to do.
"""

from __future__ import annotations


class AmnError(Exception):
    """Any error of the model room."""

    code = "amn_error"


class ConfigError(AmnError, ValueError):
    """A configuration value outside what the code can honour."""

    code = "config_invalid"


class ShapeError(AmnError):
    """An array of the wrong shape, type or norm was given to a model."""

    code = "shape_invalid"

    @classmethod
    def of(cls, shape: tuple[int, ...]) -> ShapeError:
        """Contexts of this shape: the networks know no other length."""
        return cls(f"contexts have shape {shape}; give (B, 5, 768)")


class CheckpointError(AmnError):
    """A checkpoint is missing, altered, or of another layout than its manifest says."""

    code = "checkpoint_invalid"


class DataError(AmnError):
    """Vectors or splits that must not be trained or judged on."""

    code = "data_invalid"


class FileRefused(DataError):
    """An input or output file that cannot be used."""

    code = "file_refused"


class PromotionError(AmnError):
    """A production link was left where it is, because the candidate did not pass."""

    code = "promotion_refused"

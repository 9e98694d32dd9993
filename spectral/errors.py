"""The few ways in which this package says no. Every message states what was found, what was expected and what to do."""


class SpectralError(Exception):
    """Base of all errors raised on purpose by this package."""


class AdapterFileError(SpectralError):
    """A file cannot be read, or may not be written, as an adapter."""


class WrongBaseError(SpectralError):
    """An adapter does not belong to the model or weight it was given."""


class UnknownLayerError(SpectralError):
    """A layer name or target that the model does not have."""


class SettingError(SpectralError):
    """A setting of a method or a training run that cannot be honoured."""


class Cancelled(SpectralError):
    """The caller asked to stop; nothing was changed."""

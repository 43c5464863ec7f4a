import copyreg


class _PlainlyNamed(type):
    """A class whose `__module__` is no place to import it from."""


class IPAdapterError(ValueError, metaclass=_PlainlyNamed):
    """Something the user can fix; the message says in a sentence what is wrong and what to do."""

    __module__ = "builtins"  # ComfyUI shows an error's class behind its module, which is the pack's install path for a custom node


def _ipadapter_error() -> type[IPAdapterError]:
    return IPAdapterError


copyreg.pickle(_PlainlyNamed, lambda _: (_ipadapter_error, ()))

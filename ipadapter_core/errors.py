class IPAdapterError(ValueError):
    """Something the user can fix; the message says in a sentence what is wrong and what to do."""

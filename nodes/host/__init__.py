"""The only code of the pack that knows the host's internals."""

"""The handlers of AMN and fallback workers."""

"""The HTTP gateway: the Open Inference Protocol v2, and a plain route beside it, in front of one queue."""

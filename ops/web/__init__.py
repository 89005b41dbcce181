"""The parts that the page and the gateway share: who may ask, slow clients, one server in this process."""

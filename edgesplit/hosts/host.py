"""One narrow door to the world: the Host protocol, and LocalHost, this machine as a host.

Must not know: what a command means, nor SSH.
"""

"""A fleet on one Linux machine: hosts with sshd, limits and links that can be changed while they run."""
